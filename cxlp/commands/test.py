"""``cxlp test``: a checkpoint on its own test images again, on another split, or on another data set."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from cxlp.runs.early import check_early
from cxlp.runs.places import NOT_USED, test_arguments
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint, out_folder

#: Arguments of train.py that say which images are tested, and how; a group's with its dot.
TAKEN = ("config", "data", "data.", "trainer.", "run.predictions", "seed_everything")


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "test",
        help="test a checkpoint: on its own test images, another split, or another data set with its classes",
        description="Test a checkpoint once more, and write what a run leaves of its test: metrics.json, tables (each\n"
        "image in predictions.csv), pictures, a report. Images come from the data of its run, unless keys of data\n"
        "name others, which may have no split, or a test alone. Keys of train.py stand behind the checkpoint: those\n"
        "of data and trainer, run.predictions, --config. Classes are matched by their names, in any order: images\n"
        "of others are left out, and classes without images are told. The run's own folder is left as it is.\n"
        "Exit status: 0; 2 the arguments are wrong; 3 an output beside the result could not be made.",
        epilog="examples:\n"
        "  %(prog)s runs/NAME                                         # its own test images\n"
        "  %(prog)s runs/NAME --split val                             # what it has held out\n"
        "  %(prog)s runs/NAME --data folder --data.root DIR\n"
        "  %(prog)s model.ckpt --config cub200.yaml --data.bbox true --out elsewhere\n"
        "  %(prog)s runs/NAME --trainer.devices 4 --trainer.strategy ddp",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="such as runs/NAME/checkpoints/best.ckpt, or runs/NAME"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="which images (default: test; all, if other data have no split of their own)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: beside the run's folder)")
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    path = find_checkpoint(args.checkpoint)
    for arg in args.rest:
        name = arg.partition("=")[0].lstrip("-")
        if arg.startswith("--") and name not in TAKEN and not name.startswith(tuple(t for t in TAKEN if t[-1] == ".")):
            raise CxlpError(
                f"{arg.partition('=')[0]} has no effect on a test, which takes keys of data and trainer, "
                "run.predictions and --config: leave it out"
            )
    arguments = test_arguments(path, args.rest)
    check_early([*arguments, *NOT_USED])
    if args.out is not None:
        with out_folder(args.out):  # told before all that takes seconds to import
            pass

    from cxlp.runs.retest import retest

    return retest(path, args.rest, args.split, args.out)
