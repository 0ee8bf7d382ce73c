"""``cxlp train``, which is ``train.py``, too: one run, or a series with several seeds."""

import gc
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import let_go_all

if TYPE_CHECKING:
    from cxlp.runs.cli import CLI


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
    from cxlp.runs.arguments import find_configs, nested_as_configs
    from cxlp.runs.cli import CLI, quiet
    from cxlp.runs.folder import launched_rank
    from cxlp.runs.stages import choose_epoch, train_and_test
    from cxlp.studies.seeds import run_seeds
    from cxlp.utils.distributed import is_distributed, leave_soon, leave_with_parent

    quiet()
    leave_with_parent()
    cli: CLI | None = None
    try:
        arguments = find_configs(sys.argv[1:] if args is None else args)
        cli = CLI(nested_as_configs(arguments))
        if cli.config["seeds"] is not None:
            return run_seeds(arguments, cli.config, cli.run_folder)
        if cli.run_config.refit is True:
            cli = CLI(nested_as_configs(choose_epoch(cli, arguments)))
            gc.collect()  # the first run's loaders, with their processes
        train_and_test(cli)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if launched_rank() == 0:
            print(f"\ninterrupted. {_how_to_go_on(cli)}", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:
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


def _how_to_go_on(cli: "CLI | None") -> str:
    from cxlp.runs.folder import last_checkpoint

    folder = getattr(cli, "run_folder", None)
    if cli is not None and folder is not None and cli.config["seeds"] is not None:
        return f"What is done is kept: give the same command again, with --run.name {folder.name}"
    if cli is not None and cli.choice is not None and last_checkpoint(cli.run_folder) is None:
        folder = Path(cli.choice.checkpoint).parent.parent  # of the run that has chosen, which refits anew
    last = None if folder is None else last_checkpoint(folder)
    if last is None:
        return "Nothing was saved yet: begin again"
    return f"Go on with: --config {folder}/config.yaml --ckpt_path {last}"


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
