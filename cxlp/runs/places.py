"""Where the files are that a run is given: looked up by their names only, so that a wrong one is told at once."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cxlp.utils.errors import CxlpError, did_you_mean, nearest
from cxlp.utils.files import find_checkpoint

#: The folder, within a run's, of the second run of ``run.refit: true``.
REFIT = "refit"
#: Checkpoints that a run can be gone on with, the newest first.
NEWEST = ("closing.ckpt", "last.ckpt", "frozen.ckpt")
#: Where gradient descent may start, besides a checkpoint.
STARTS = ("frozen", "projection", "scratch")


def check_run_name(name: str) -> None:
    """Refuse a run's name that is not the name of a folder.

    Raises:
        CxlpError: Says where the place of runs is given.
    """
    if Path(name).name != name or name == ".." or "\0" in name:
        raise CxlpError(f"run.name is {name!r}: expected a name without slashes; --run.root is the folder of all runs")


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
        raise CxlpError(f"checkpoint not found: {given}. {did_you_mean(str(given), near)}".rstrip())
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
            + (f". Did you mean {near!r}?" if (near := nearest(start, STARTS)) else "")
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


#: One process and no logs, whatever the run had; later arguments may say otherwise.
_ALONE = {
    "trainer.accelerator": "auto", "trainer.devices": "1", "trainer.num_nodes": "1", "trainer.strategy": "auto",
    "trainer.logger": "false",
}  # fmt: skip
#: Keys of files that matter to runs alone, and may have gone since, as if they were not given.
NOT_USED = ("--model.start", "frozen", "--run.refit", "false", "--model.backbone.weights", "null")


def run_of(path: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in; ``None``: it lies in none."""
    folder = path.absolute().parent.parent
    return folder if path.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def test_arguments(path: Path, given: Sequence[str]) -> list[str]:
    """Put the arguments of a checkpoint's run before those that are given to test it.

    Raises:
        CxlpError: If the checkpoint lies in no run's folder, and no data are named.
    """
    run = run_of(path)
    if run is None and not any(arg.split("=")[0] in ("-c", "--config", "--data") for arg in given):
        raise CxlpError(
            f"{path} does not lie in a run's folder, which would tell its data: name them, such as "
            "--config cub200.yaml or --data folder --data.root DIR"
        )
    configs = [] if run is None else [run / "config-resumed.yaml", run / "config.yaml"]
    own = next((["--config", str(config)] for config in configs if config.is_file()), [])
    alone = [part for key, value in _ALONE.items() for part in (f"--{key}", value)]
    return [*own, *alone, "--ckpt_path", "null", *given]


@contextmanager
def describing_data(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Arguments whose configs may describe no data, which the parser asks for, as overlays do not."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "data.yaml"
        whole.write_text("data: Demo\n")
        yield ["--config", str(whole), *arguments, "--data", "Demo"]
