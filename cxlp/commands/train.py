"""``train.py`` and ``cxlp train``: one run, or a series with several seeds."""

import gc
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from cxlp.runs.arguments import find_configs
from cxlp.runs.cli import parse
from cxlp.runs.folder import last_checkpoint, launched_rank, run_name
from cxlp.runs.loggers import RunConfig
from cxlp.runs.results import Results
from cxlp.runs.stages import Run, choose_epoch
from cxlp.studies.seeds import run_seeds
from cxlp.utils.distributed import is_distributed
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import let_go


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py``.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 where the user can mend something; 130 where the user interrupted.
    """
    run: Run | None = None
    series: Path | None = None
    try:
        arguments = find_configs(sys.argv[1:] if args is None else args)
        if args is None:
            sys.argv[1:] = arguments  # what the processes of further ranks are started with
        config = parse(arguments)
        if config["seeds"] is not None:
            settings = RunConfig(**config["run"].as_dict())
            series = Path(settings.root) / run_name(settings, config)
            return run_seeds(arguments, config, series)
        run = Run(config)
        if run.settings.refit is True:
            run = Run(parse(choose_epoch(run, arguments)))
            gc.collect()  # the first run's loaders, with their processes
        _train_and_test(run)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if launched_rank() == 0:
            print(f"\ninterrupted. {_how_to_go_on(run, series)}", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:
        said = _mendable(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        let_go()
    return 0


def _train_and_test(run: Run) -> None:
    """Do the stages, test the best of them, and write down what came out."""
    start = time.perf_counter()
    stage = run.fit()
    tested = run.test(stage)
    if run.trainer.is_global_zero:
        # Of the phases, a resumed run knows all the time they took; of what is between them, this process's only.
        whole = "total" if run.resumed is None else "since resumed"
        results = Results(run, stage, tested, {**run.times, whole: time.perf_counter() - start})
        results.write()
        results.show()


def _how_to_go_on(run: Run | None, series: Path | None) -> str:
    if series is not None:
        return f"What is done is kept: give the same command again, with --run.name {series.name}"
    folder = None if run is None else run.folder
    if run is not None and run.choice is not None and last_checkpoint(run.folder) is None:
        folder = Path(run.choice.checkpoint).parent.parent  # of the run that has chosen, which refits anew
    if folder is None or last_checkpoint(folder) is None:
        return "Nothing was saved yet: begin again"
    return f"Go on with: --config {folder}/config.yaml --ckpt_path {folder}"


def _mendable(error: BaseException | None) -> str | None:
    """What to tell the user of an exception that they can mend; ``None`` for one that we have to."""
    while error is not None:  # the parser wraps what constructors raise
        if isinstance(error, CxlpError):
            # From a loader's worker, the message carries the worker's traceback.
            return str(error).rpartition("CxlpError: ")[2].strip()
        if isinstance(error, MisconfigurationException):
            return " ".join(str(error).split())
        if is_distributed() and re.search("Connection (closed by|reset by) peer|Socket closed", str(error)):
            return "another process of this run has stopped: see its message"
        error = error.__cause__
    return None


if __name__ == "__main__":
    sys.exit(main())
