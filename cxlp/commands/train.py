"""``train.py`` and ``cxlp train``: one run, or a series with several seeds."""

import gc
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.commands.completion import complete, is_asked
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import let_go_all
from cxlp.utils.processes import STOPPED, how_ended, is_waited_for, leave_soon, leave_with_parent, raising_on_signals
from cxlp.utils.program import (
    collecting_no_garbage,
    end_without_collecting,
    forget_ranks_without_number,
    print_any_text,
    train_program,
)

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


@dataclass
class _Begun:
    """What has begun, and when: a run, or a series of runs in a folder; and whether this process tells how to go on."""

    start: float = field(default_factory=time.perf_counter)

    run: "Run | None" = None
    series: Path | None = None
    speaks: bool = field(default_factory=lambda: not is_waited_for())


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py``, which is ``cxlp train``, too.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 where the user can mend something; 3 if the result is there, but an output beside it (a
        table, a picture, the report, a log) could not be made, which stderr names; 130, 143 or 129 after SIGINT
        (Ctrl-C), SIGTERM or SIGHUP.
    """
    begun = _Begun()
    if is_asked():
        parser = ArgumentParser(prog=train_program(), add_help=False)
        complete(parser, [parser])
    print_any_text()
    end_without_collecting()
    with raising_on_signals():
        try:
            return _run(sys.argv[1:] if args is None else args, begun)
        except BaseException as error:
            ended = how_ended(error)
            if ended is not None:
                if begun.speaks:
                    print(f"\n{ended[1]}. {_how_to_go_on(begun)}", file=sys.stderr)  # noqa: T201
                if begun.run is not None:
                    begun.run.discard()
                    _let_peers_know(ended[0])
                return ended[0]
            if not isinstance(error, Exception):
                raise
            if begun.run is not None:
                begun.run.discard()
            return _failed(error)
        finally:
            let_go_all()


def _run(args: Sequence[str], begun: _Begun) -> int:
    forget_ranks_without_number()
    if not {"-h", "--help", "--help-all"}.isdisjoint(args):
        return _help("--help-all" in args)
    from cxlp.commands.keys_help import keys_help
    from cxlp.runs.early import check_early

    if (page := keys_help(args)) is not None:
        print(page, end="")  # noqa: T201
        return 0
    check_early(args)  # before all that takes seconds to import
    with collecting_no_garbage():
        from cxlp.runs.arguments import find_configs
        from cxlp.runs.choosing import choose_epoch
        from cxlp.runs.cli import parse, parts_of
        from cxlp.runs.folder import looks_for_earlier, run_name
        from cxlp.runs.launch import launched_rank, requeue_on_signal, settle_launch
        from cxlp.runs.loggers import RunConfig
        from cxlp.runs.stages import Run
        from cxlp.studies.seeds import run_seeds

    requeue_on_signal()
    arguments = find_configs(args)
    config = parse(arguments)
    if config["seeds"] is not None:
        settings = RunConfig(**config["run"].as_dict())
        looks_for_earlier(settings)  # which a series does by its name anyway
        begun.series = Path(settings.root) / run_name(settings, config, parts_of(config)["data"])
        begun.speaks = not leave_with_parent()
        return run_seeds(arguments, config, begun.series)
    settle_launch(config["trainer"])
    begun.speaks = not leave_with_parent() and launched_rank() == 0
    begun.run = Run(config)
    if begun.run.settings.refit is True:
        arguments = choose_epoch(begun.run, arguments)
        begun.start = time.perf_counter()
        begun.run = Run(parse(arguments))
        gc.collect()  # the first run's loaders, with their processes
    return _train_and_test(begun.run, begun.start)


def _help(of_all_keys: bool) -> int:
    if of_all_keys:
        from cxlp.runs.cli import build_parser

        build_parser().print_help()
    else:
        from cxlp.commands.train_help import help_page

        print(help_page(), end="")  # noqa: T201
    return 0


def _let_peers_know(status: int) -> None:
    """Be gone soon, among several processes: even Python's end may wait for the others."""
    if "torch" not in sys.modules:  # there is no process group yet
        return
    from cxlp.utils.distributed import is_distributed

    if is_distributed():
        leave_soon(status)


def _failed(error: Exception) -> int:
    """Say what the user can mend, and return the exit status; raise what is ours to mend."""
    said = _mendable(error)
    _let_peers_know(1 if said is None else 2)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)  # noqa: T201
    return 2


def _train_and_test(run: "Run", start: float) -> int:
    """Do the stages of a run, test the best of them, and write down what came out; returns the exit status."""
    from cxlp.runs.results import Clock, Results

    clock = Clock(start, run.times, run.resumed is not None)
    stage = run.fit()
    tested = run.test(stage)
    return Results(run, stage, tested, clock).write() if run.trainer.is_global_zero else 0


def _how_to_go_on(begun: _Begun) -> str:
    if begun.series is not None:
        return f"What is done is kept: give the same command again, with --run.name {begun.series.name}"
    if begun.run is not None:
        from cxlp.runs.places import last_checkpoint

        folder = begun.run.folder
        if begun.run.choice is not None and last_checkpoint(folder) is None:
            folder = Path(begun.run.choice.checkpoint).parent.parent  # of the run that has chosen, which refits anew
        if last_checkpoint(folder) is not None:
            return f"Go on with: --config {folder}/config.yaml --ckpt_path {folder}"
    return "Nothing was saved yet: begin again"


#: What collectives raise where a peer has ended: gloo's words, and NCCL's.
_PEER_GONE = (
    "Connection (closed by|reset by) peer|Socket closed|Broken pipe|remote process exited|communicator was aborted"
)


def _mendable(error: BaseException | None) -> str | None:
    """What to tell the user of an exception that they can mend; ``None`` for one that we have to."""
    while error is not None:  # the parser wraps what constructors raise
        if isinstance(error, CxlpError):
            # From a loader's worker, the message carries the worker's traceback.
            return str(error).rpartition("CxlpError: ")[2].strip()
        # Not above: what is told early is told without torch.
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

        from cxlp.utils.distributed import is_distributed

        # Lightning's EarlyStopping raises a bare RuntimeError for a metric that is not logged.
        if isinstance(error, MisconfigurationException) or str(error).startswith("Early stopping conditioned on"):
            return " ".join(str(error).split())
        if is_distributed() and re.search(_PEER_GONE, str(error)):
            return STOPPED
        error = error.__cause__
    return None
