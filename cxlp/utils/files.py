"""Atomic writing of files, output folders, and search for checkpoints."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from cxlp.utils.errors import CxlpError, nearest


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint; for a run's folder, the path of its tested checkpoint.

    Raises:
        CxlpError: If there is no such checkpoint. The message names other checkpoints in the folder.
    """
    file = Path(path)
    if file.is_dir():
        # With a refit, only the refitted network is tested.
        places = (file / "refit" / "checkpoints", file / "checkpoints", file)
        best = next((found for place in places if (found := place / "best.ckpt").is_file()), None)
        if best is None:
            others = sorted(
                [*file.glob("checkpoints/*.ckpt"), *file.glob("*.ckpt"), *file.glob("*/checkpoints/best.ckpt")]
            )
            what = "has no checkpoints/best.ckpt, which exists after the test of a run"
            has = f". It has {', '.join(map(str, others[:5]))}" if others else _meant(file, {})
            raise CxlpError(f"{file} {what}{has}")
        return best
    if not file.is_file():
        siblings = {
            found.stem: found for found in sorted(file.parent.glob("[!.]*"))
        }  # keyed by stem, since all checkpoints have the same suffix
        raise CxlpError(f"checkpoint not found: {file}{_meant(file, siblings)}")
    return file


def _meant(file: Path, siblings: dict[str, Path]) -> str:
    """Return a suggestion: a run of this name, as listed by ``cxlp runs``, or a file with a similar name."""
    near = nearest(file.stem, siblings)
    run = Path("runs", file.name)
    is_run = not file.suffix and file.parent == Path() and run.is_dir()
    meant = run if is_run else siblings[near] if near else None
    return f". Did you mean {str(meant)!r}?" if meant else ""


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file atomically: write a temporary file and rename it.

    The temporary file has a fixed name. A file that a killed process leaves behind is overwritten by the next attempt,
    which is safe because only one process writes to a run's folder.
    """
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with aside(path) as partial:
        partial.write_bytes(data)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file atomically, see :func:`write_whole`, and create the target's folder if necessary."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with aside(target) as partial:
        shutil.copyfile(source, partial)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Context with a temporary file, which is renamed at the end, or deleted after an error."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    except Exception:  # on a full disk, the partial file would use up the remaining space
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def out_folder(out: Path) -> Iterator[None]:
    """Context that creates an output folder for a command, and removes it at the end if new and empty.

    Raises:
        CxlpError: If the folder cannot be created or written to.
    """
    if out.exists() and not out.is_dir():
        raise CxlpError(f"--out {out} is a file: name a folder")
    new = [place for place in (out, *out.parents) if not place.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except (OSError, ValueError) as error:
        raise CxlpError(
            f"--out {out} is not writable: {getattr(error, 'strerror', error)}. Name another folder"
        ) from error
    try:
        yield
    finally:
        for place in new:
            if any(place.iterdir()):
                break
            place.rmdir()
