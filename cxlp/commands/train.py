"""``train.py`` and ``cxlp train``: one run, or a series with several seeds."""

import gc
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import let_go_all

if TYPE_CHECKING:
    from cxlp.runs.stages import Run


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    # Its options, and --help with them, are those of the command line's own parser.
    parser = add_parser(
        "train", help="train and test, as train.py does; see train --help", add_help=False, allow_abbrev=False
    )
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    return main(args.rest)


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py``, which is ``cxlp train``, too.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 where the user can mend something; 130 where the user interrupted.
    """
    from cxlp.runs.arguments import find_configs
    from cxlp.runs.cli import parse
    from cxlp.runs.folder import run_name
    from cxlp.runs.launch import launched_rank, requeue_on_signal, settle_launch
    from cxlp.runs.loggers import RunConfig
    from cxlp.runs.stages import Run, choose_epoch
    from cxlp.studies.seeds import run_seeds
    from cxlp.utils.distributed import is_distributed, leave_soon, leave_with_parent

    requeue_on_signal()
    begun: Run | None = None
    series: Path | None = None
    try:
        arguments = find_configs(sys.argv[1:] if args is None else args)
        config = parse(arguments)
        if config["seeds"] is not None:
            settings = RunConfig(**config["run"].as_dict())
            series = Path(settings.root) / run_name(settings, config)
            return run_seeds(arguments, config, series)
        settle_launch(config["trainer"])
        leave_with_parent()
        begun = Run(config)
        if begun.settings.refit is True:
            begun = Run(parse(choose_epoch(begun, arguments)))
            gc.collect()  # the first run's loaders, with their processes
        _train_and_test(begun)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if launched_rank() == 0:
            print(f"\ninterrupted. {_how_to_go_on(begun, series)}", file=sys.stderr)  # noqa: T201
        if begun is not None:
            begun.discard()
        return 130
    except Exception as error:
        if begun is not None:
            begun.discard()
        said = _mendable(error)
        if is_distributed():
            leave_soon(1 if said is None else 2)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        let_go_all()
    return 0


def _train_and_test(begun: "Run") -> None:
    """Do the stages of a run, test the best of them, and write down what came out."""
    from cxlp.runs.results import Results

    start = time.perf_counter()
    stage = begun.fit()
    tested = begun.test(stage)
    if begun.trainer.is_global_zero:
        # A resumed run knows all the time that its phases took; between them, only what this process took.
        whole = "total" if begun.resumed is None else "since resumed"
        results = Results(begun, stage, tested, {**begun.times, whole: time.perf_counter() - start})
        results.write()
        results.show()


def _how_to_go_on(begun: "Run | None", series: Path | None) -> str:
    from cxlp.runs.folder import last_checkpoint

    if series is not None:
        return f"What is done is kept: give the same command again, with --run.name {series.name}"
    folder = None if begun is None else begun.folder
    if begun is not None and begun.choice is not None and last_checkpoint(begun.folder) is None:
        folder = Path(begun.choice.checkpoint).parent.parent  # of the run that has chosen, which refits anew
    if folder is None or last_checkpoint(folder) is None:
        return "Nothing was saved yet: begin again"
    return f"Go on with: --config {folder}/config.yaml --ckpt_path {folder}"


#: What collectives raise where a peer has ended: gloo's words, and NCCL's.
_PEER_GONE = (
    "Connection (closed by|reset by) peer|Socket closed|Broken pipe|remote process exited|communicator was aborted"
)


def _mendable(error: BaseException | None) -> str | None:
    """What to tell the user of an exception that they can mend; ``None`` for one that we have to."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

    from cxlp.utils.distributed import STOPPED, is_distributed

    while error is not None:  # the parser wraps what constructors raise
        if isinstance(error, CxlpError):
            # From a loader's worker, the message carries the worker's traceback.
            return str(error).rpartition("CxlpError: ")[2].strip()
        if isinstance(error, MisconfigurationException):
            return " ".join(str(error).split())
        if is_distributed() and re.search(_PEER_GONE, str(error)):
            return STOPPED
        error = error.__cause__
    return None
