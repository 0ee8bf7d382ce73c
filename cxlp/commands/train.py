"""``train.py`` and ``cxlp train``: one run, or a series of runs with different seeds."""

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from cxlp.commands.completion import complete, is_asked
from cxlp.runs.endings import Begun, end_if_distributed, resumable_folder, user_message
from cxlp.utils.locking import release_all_locks
from cxlp.utils.processes import exit_status_of, leave_with_parent, raising_on_signals
from cxlp.utils.program import (
    escape_unprintable_text,
    skip_collection_at_exit,
    train_program,
    unset_invalid_ranks,
    without_garbage_collection,
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
    escape_unprintable_text()
    skip_collection_at_exit()
    with recording(), raising_on_signals():
        try:
            return _run(sys.argv[1:] if args is None else args, begun)
        except BaseException as error:
            ended = exit_status_of(error)
            if ended is not None:
                if begun.run is not None:
                    begun.run.discard()
                if begun.speaks:  # after discard(), to name only what still exists
                    print(f"\n{ended[1]}. {_how_to_resume(begun)}", file=sys.stderr)  # noqa: T201
                end_if_distributed(ended[0])
                return ended[0]
            if not isinstance(error, Exception):
                raise
            if begun.run is not None:
                begun.run.discard()
            return _failed(error)
        finally:
            release_all_locks()


def _run(args: Sequence[str], begun: Begun) -> int:
    unset_invalid_ranks()
    if not {"-h", "--help", "--help-all"}.isdisjoint(args):
        return _help("--help-all" in args)
    from cxlp.commands.keys_help import keys_help
    from cxlp.runs.early import check_early

    if (page := keys_help(args)) is not None:
        print(page, end="")  # noqa: T201
        return 0
    check_early(args)  # before the slow imports
    with without_garbage_collection():
        from cxlp.runs.arguments import find_configs
        from cxlp.runs.cli import parse, parts_of
        from cxlp.runs.folder import may_resume, run_name
        from cxlp.runs.launch import requeue_on_signal
        from cxlp.runs.loggers import RunConfig
        from cxlp.runs.training import train_and_test
        from cxlp.studies.seeds import run_seeds

    requeue_on_signal()
    arguments = find_configs(args)
    config = parse(arguments)
    if config["seeds"] is not None:
        settings = RunConfig(**config["run"].as_dict())
        may_resume(settings)  # checks run.resume: a series finds its earlier runs by name
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
    said = user_message(error)
    end_if_distributed(1 if said is None else 2)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)  # noqa: T201
    return 2


def _how_to_resume(begun: Begun) -> str:
    if begun.series is not None:
        name = shlex.quote(begun.series.name)
        return f"Finished runs are kept. To continue, repeat the command with --run.name {name}"
    folder = resumable_folder(begun.run)
    if folder is not None:
        config, place = shlex.quote(f"{folder}/config.yaml"), shlex.quote(str(folder))
        return f"To continue: {train_program()} --config {config} --ckpt_path {place}"
    return "Nothing was saved yet: start again"
