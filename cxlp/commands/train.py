"""``train.py`` and ``cxlp train``: one run, or a series of runs with different seeds."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from cxlp.commands.completion import complete, is_asked
from cxlp.runs.endings import Begun, folder_to_go_on, let_peers_know, mendable
from cxlp.utils.locking import let_go_all
from cxlp.utils.processes import how_ended, leave_with_parent, raising_on_signals
from cxlp.utils.program import (
    collecting_no_garbage,
    end_without_collecting,
    forget_ranks_without_number,
    print_any_text,
    train_program,
)
from cxlp.utils.transcript import recording


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    # LightningCLI's parser defines the options and --help.
    parser = add_parser("train", help="train and test a network, like train.py", add_help=False, allow_abbrev=False)
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    return main(args.rest)


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py`` or ``cxlp train``.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 after an error that the user can fix; 3 if the results were written, but a secondary
        output (a table, a picture, the report, a log), which stderr names, was not; 130, 143 or 129 after SIGINT
        (Ctrl-C), SIGTERM or SIGHUP.
    """
    begun = Begun()
    if is_asked():
        parser = ArgumentParser(prog=train_program(), add_help=False)
        complete(parser, [parser])
    print_any_text()
    end_without_collecting()
    with recording(), raising_on_signals():
        try:
            return _run(sys.argv[1:] if args is None else args, begun)
        except BaseException as error:
            ended = how_ended(error)
            if ended is not None:
                if begun.run is not None:
                    begun.run.discard()
                if begun.speaks:  # after discard(), to name only what still exists
                    print(f"\n{ended[1]}. {_how_to_go_on(begun)}", file=sys.stderr)  # noqa: T201
                let_peers_know(ended[0])
                return ended[0]
            if not isinstance(error, Exception):
                raise
            if begun.run is not None:
                begun.run.discard()
            return _failed(error)
        finally:
            let_go_all()


def _run(args: Sequence[str], begun: Begun) -> int:
    forget_ranks_without_number()
    if not {"-h", "--help", "--help-all"}.isdisjoint(args):
        return _help("--help-all" in args)
    from cxlp.commands.keys_help import keys_help
    from cxlp.runs.early import check_early

    if (page := keys_help(args)) is not None:
        print(page, end="")  # noqa: T201
        return 0
    check_early(args)  # before the slow imports
    with collecting_no_garbage():
        from cxlp.runs.arguments import find_configs
        from cxlp.runs.cli import parse, parts_of
        from cxlp.runs.folder import looks_for_earlier, run_name
        from cxlp.runs.launch import requeue_on_signal
        from cxlp.runs.loggers import RunConfig
        from cxlp.runs.training import train_and_test
        from cxlp.studies.seeds import run_seeds

    requeue_on_signal()
    arguments = find_configs(args)
    config = parse(arguments)
    if config["seeds"] is not None:
        settings = RunConfig(**config["run"].as_dict())
        looks_for_earlier(settings)  # checks run.resume: a series finds its earlier runs by name
        begun.series = Path(settings.root) / run_name(settings, config, parts_of(config)["data"])
        begun.speaks = not leave_with_parent()
        return run_seeds(arguments, config, begun.series)
    return train_and_test(arguments, config, begun)


def _help(of_all_keys: bool) -> int:
    if of_all_keys:
        from cxlp.runs.cli import build_parser

        build_parser().print_help()
    else:
        from cxlp.commands.train_help import help_page

        print(help_page(), end="")  # noqa: T201
    return 0


def _failed(error: Exception) -> int:
    """Print an error that the user can fix, and return the exit status; raise any other error again."""
    said = mendable(error)
    let_peers_know(1 if said is None else 2)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)  # noqa: T201
    return 2


def _how_to_go_on(begun: Begun) -> str:
    if begun.series is not None:
        return f"Finished runs are kept. To continue, repeat the command with --run.name {begun.series.name}"
    folder = folder_to_go_on(begun.run)
    if folder is not None:
        return f"To continue: --config {folder}/config.yaml --ckpt_path {folder}"
    return "Nothing was saved yet: start again"
