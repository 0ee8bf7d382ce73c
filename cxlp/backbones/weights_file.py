"""Where a backbone's weights are: looked up without torch, so that a wrong name is told at once."""

from pathlib import Path

from cxlp.utils.errors import CxlpError, did_you_mean

#: What names of files of weights end in.
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".onnx", ".tar", ".safetensors")


def find_weights(path: str | Path) -> Path:
    """Find a file of weights; ``~`` is the home folder.

    Raises:
        CxlpError: If there is none; names those that are called alike.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        there = file.parent.is_dir()
        near = [p.name for p in file.parent.glob("*") if p.suffix in SUFFIXES] if there else []
        lacking = "are no weights in" if there else "is no folder"
        hint = (
            did_you_mean(file.name, near) if near else f"There {lacking} {file.parent}. Give a file, default or null."
        )
        raise CxlpError(f"weights file not found: {file}. {hint}")
    return file
