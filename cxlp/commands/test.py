"""``cxlp test``: test a checkpoint on its own test images, on another split, or on another data set."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from cxlp.runs.early import check_early
from cxlp.runs.places import NOT_USED, test_arguments
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint, out_folder

#: Arguments of train.py that the command accepts; prefixes of groups end in a dot.
TAKEN = ("config", "data", "data.", "trainer.", "run.predictions", "seed_everything")


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "test",
        help="test a checkpoint on its own test images, another split, or another data set with its classes",
        description="Test a checkpoint again, and write the same outputs as the test of a run: metrics.json, tables\n"
        "(predictions.csv has each image), pictures and a report. The run's own folder is not changed.\n"
        "The images are those of the checkpoint's run, unless --data keys name others, which may have only a\n"
        "test split or no split at all. Keys of train.py may follow the checkpoint: --data.*, --trainer.*,\n"
        "--run.predictions and --config.\n"
        "Classes are matched by name, in any order. Images of unknown classes are left out, and classes without\n"
        "images are reported.\n"
        "Exit status: 0; 2 the arguments are wrong; 3 a secondary output could not be written.",
        epilog="examples:\n"
        "  %(prog)s runs/NAME                                         # its own test images\n"
        "  %(prog)s runs/NAME --split val                             # its held-out images\n"
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
        help="the images to test on (default: test; all, for other data without splits)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: beside the run's folder)")
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    path = find_checkpoint(args.checkpoint)
    for arg in args.rest:
        name = arg.partition("=")[0].lstrip("-")
        if arg.startswith("--") and name not in TAKEN and not name.startswith(tuple(t for t in TAKEN if t[-1] == ".")):
            raise CxlpError(
                f"{arg.partition('=')[0]} has no effect on a test: leave it out "
                "(valid: keys of data and trainer, run.predictions, --config)"
            )
    arguments = test_arguments(path, args.rest)
    check_early([*arguments, *NOT_USED])
    if args.out is not None:
        with out_folder(args.out):  # fails early, before the slow imports
            pass

    from cxlp.runs.retest import retest

    return retest(path, args.rest, args.split, args.out)
