"""Where the files are that a run is given: looked up by their names only, so that a wrong one is told at once."""

from pathlib import Path

from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.files import find_checkpoint

#: Checkpoints that a run can be gone on with, the newest first.
NEWEST = ("closing.ckpt", "last.ckpt", "frozen.ckpt")
#: Where gradient descent may start, besides a checkpoint.
STARTS = ("frozen", "projection", "scratch")


def last_checkpoint(folder: Path) -> Path | None:
    """Return what a run can be resumed from; ``None``: nothing was saved yet."""
    paths = [folder / "checkpoints" / name for name in NEWEST]
    return next((path for path in paths if path.is_file()), None)


def resumed_checkpoint(given: Path, root: str) -> Path:
    """Find the checkpoint that ``ckpt_path`` names: of a run's folder, the newest one.

    Args:
        given: The folder or the file.
        root: Where runs are, for the error.

    Raises:
        CxlpError: If there is none.
    """
    if given.is_dir():
        newest = last_checkpoint(given)
        if newest is None:
            raise CxlpError(f"{given} holds no checkpoint to go on from")
        given = newest
    if not given.is_file():
        near = sorted(str(p) for p in Path(root).glob("*/checkpoints/*.ckpt"))
        raise CxlpError(f"checkpoint not found: {given}. {did_you_mean(str(given), near) if near else ''}")
    return given


def start_checkpoint(start: str) -> Path:
    """Find the checkpoint that ``model.start`` names: of a run's folder, the tested one.

    Raises:
        CxlpError: If there is none.
    """
    try:
        return find_checkpoint(start)
    except CxlpError as error:
        raise CxlpError(
            f"model.start is {start!r}: expected {', '.join(STARTS)}, or the path of a checkpoint or of a run's folder"
        ) from error


def chosen_checkpoint(path: str) -> Path:
    """Find the checkpoint that ``run.refit`` names.

    Raises:
        CxlpError: If there is none.
    """
    if not Path(path).is_file():
        raise CxlpError(
            f"run.refit is {path!r}: expected true, false, or the best checkpoint of a run with held-out images"
        )
    return Path(path)
