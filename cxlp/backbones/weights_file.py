"""Search for weights files, without importing torch, so that a wrong path is reported at once."""

from pathlib import Path

from cxlp.utils.errors import CxlpError, did_you_mean

#: Suffixes of weights files.
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".onnx", ".tar", ".safetensors")


def find_weights(path: str | Path) -> Path:
    """Return the path of a weights file, with ``~`` expanded to the home folder.

    Raises:
        CxlpError: If the file does not exist. The message suggests files with similar names.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        there = file.parent.is_dir()
        near = [p.name for p in file.parent.glob("*") if p.suffix in SUFFIXES] if there else []
        lacking = "are no weights in" if there else "is no folder"
        hint = (
            did_you_mean(file.name, near)
            if near
            else f"There {lacking} {file.parent}. Set the backbone's weights to an existing file, default or null."
        )
        raise CxlpError(f"weights file not found: {file}. {hint}")
    return file
