"""Lookup of a run's input files by name only, so that wrong paths are reported immediately."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cxlp.utils.errors import CxlpError, did_you_mean, nearest
from cxlp.utils.files import find_checkpoint

#: Folder of the second run of ``run.refit: true``, inside the first run's folder.
REFIT = "refit"
#: Checkpoints that a run can be resumed from, the newest first.
NEWEST = ("closing.ckpt", "last.ckpt", "frozen.ckpt")
#: Values of ``model.start`` besides the path of a checkpoint.
STARTS = ("frozen", "projection", "scratch")


def check_run_name(name: str) -> None:
    """Refuse a run's name that is not the name of a folder.

    Raises:
        CxlpError: Says where the place of runs is given.
    """
    if Path(name).name != name or name == ".." or "\0" in name:
        raise CxlpError(f"run.name is {name!r}: expected a name without slashes; --run.root is the folder of all runs")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that a run can be resumed from; ``None`` if nothing was saved yet."""
    paths = [folder / "checkpoints" / name for name in NEWEST]
    return next((path for path in paths if path.is_file()), None)


def resumed_checkpoint(given: Path, root: str) -> Path:
    """Find the checkpoint that ``ckpt_path`` names; for a run's folder, its newest checkpoint.

    Args:
        given: A run's folder or a checkpoint file.
        root: Folder of runs, to suggest similar paths in the error message.

    Raises:
        CxlpError: If there is no such checkpoint.
    """
    if given.is_dir():
        newest = last_checkpoint(given)
        if newest is None:
            raise CxlpError(f"{given} contains no checkpoint to resume from")
        given = newest
    if not given.is_file():
        near = sorted(str(p) for p in Path(root).glob("*/checkpoints/*.ckpt"))
        raise CxlpError(f"checkpoint not found: {given}. {did_you_mean(str(given), near)}".rstrip())
    return given


def start_checkpoint(start: str) -> Path:
    """Find the checkpoint that ``model.start`` names; for a run's folder, its tested checkpoint.

    Raises:
        CxlpError: If there is no such checkpoint.
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
        CxlpError: If there is no such checkpoint.
    """
    if not Path(path).is_file():
        raise CxlpError(
            f"run.refit is {path!r}: expected true, false, or the best checkpoint of a run with held-out images"
        )
    return Path(path)


#: Defaults of a test: one process and no logs, whatever the run's config says.
_TEST_DEFAULTS = {
    "trainer.accelerator": "auto", "trainer.devices": "1", "trainer.num_nodes": "1", "trainer.strategy": "auto",
    "trainer.logger": "false",
}  # fmt: skip
#: Defaults for keys that name files which only a run needs and which may have been deleted since.
NOT_USED = ("--model.start", "frozen", "--run.refit", "false", "--model.backbone.weights", "null")


def run_of(path: Path) -> Path | None:
    """The folder of the run that contains a checkpoint; ``None`` if no run contains it."""
    folder = path.absolute().parent.parent
    return folder if path.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def test_arguments(path: Path, given: Sequence[str]) -> list[str]:
    """Prepend the arguments of a checkpoint's run to those given for its test.

    Raises:
        CxlpError: If the checkpoint is not in a run's folder and the arguments name no data set.
    """
    run = run_of(path)
    if run is None and not any(arg.split("=")[0] in ("-c", "--config", "--data") for arg in given):
        raise CxlpError(
            f"{path} is not in a run's folder, so its data set is unknown: name one, such as --config cub200.yaml or "
            "--data folder --data.root DIR"
        )
    configs = [] if run is None else [run / "config-resumed.yaml", run / "config.yaml"]
    own = next((["--config", str(config)] for config in configs if config.is_file()), [])
    alone = [part for key, value in _TEST_DEFAULTS.items() for part in (f"--{key}", value)]
    return [*own, *alone, "--ckpt_path", "null", *given]


@contextmanager
def describing_data(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Add a placeholder data set to arguments that may name none, since the parser requires one."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "data.yaml"
        whole.write_text("data: Demo\n")
        yield ["--config", str(whole), *arguments, "--data", "Demo"]
