"""Files that are whole or not there at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from cxlp.utils.errors import CxlpError, nearest


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that is meant: the file itself, or of a run's folder the tested one.

    Raises:
        CxlpError: If there is none; of a folder, names what there is.
    """
    file = Path(path)
    if file.is_dir():
        # Of a refit, only the second run is tested.
        places = (file / "refit" / "checkpoints", file / "checkpoints", file)
        best = next((found for place in places if (found := place / "best.ckpt").is_file()), None)
        if best is None:
            others = sorted(
                [*file.glob("checkpoints/*.ckpt"), *file.glob("*.ckpt"), *file.glob("*/checkpoints/best.ckpt")]
            )
            what = "holds no checkpoints/best.ckpt, which a run has once it was tested"
            has = f". It has {', '.join(map(str, others[:5]))}" if others else _meant(file, {})
            raise CxlpError(f"{file} {what}{has}")
        return best
    if not file.is_file():
        siblings = {found.stem: found for found in sorted(file.parent.glob("[!.]*"))}  # all have one suffix
        raise CxlpError(f"checkpoint not found: {file}{_meant(file, siblings)}")
    return file


def _meant(file: Path, siblings: dict[str, Path]) -> str:
    """Ask about what is named nearly the same: a run of that name, as ``cxlp runs`` lists it, or a file."""
    near = nearest(file.stem, siblings)
    run = Path("runs", file.name)
    is_run = not file.suffix and file.parent == Path() and run.is_dir()
    meant = run if is_run else siblings[near] if near else None
    return f". Did you mean {str(meant)!r}?" if meant else ""


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file aside and rename it, so that no reader ever sees half of it.

    What a kill leaves aside has one name for all attempts, and is written over: a run's folder is one process's.
    """
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with aside(path) as partial:
        partial.write_bytes(data)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file as :func:`write_whole` writes one; the target's folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with aside(target) as partial:
        shutil.copyfile(source, partial)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Give a name beside a path, and rename what is written there; delete it where writing fails."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    except Exception:  # on a full disk, half of it would take what is left
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def out_folder(out: Path) -> Iterator[None]:
    """Make a folder for what a command writes; a new one that is still empty in the end is taken away again.

    Raises:
        CxlpError: If it cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise CxlpError(f"--out {out} is a file: name a folder")
    new = [place for place in (out, *out.parents) if not place.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except (OSError, ValueError) as error:
        raise CxlpError(f"--out {out} cannot be written into: {getattr(error, 'strerror', error)}") from error
    try:
        yield
    finally:
        for place in new:
            if any(place.iterdir()):
                break
            place.rmdir()
