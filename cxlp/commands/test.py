"""``cxlp test``: a checkpoint on its own test images again, on another split, or on another data set."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from cxlp.utils.files import find_checkpoint


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "test",
        help="test a checkpoint: on its own test images, another split, or another data set with its classes",
        description="Test a checkpoint once more, and write what a run leaves of its test: metrics.json, tables (each\n"
        "image in predictions.csv), pictures, a report. Images come from the data of its run, unless other\n"
        "arguments, those of train.py, name others. Classes are matched by their names, in any order: images of\n"
        "others are left out, and classes without images are told. The run's own folder is left as it is.\n"
        "Exit status: 0; 2 the arguments are wrong; 3 an output beside the result could not be made.",
        epilog="examples:\n"
        "  %(prog)s runs/NAME                                         # its own test images\n"
        "  %(prog)s runs/NAME --split val                             # what it has held out\n"
        "  %(prog)s runs/NAME --data folder --data.root DIR --split all\n"
        "  %(prog)s model.ckpt --config cub200.yaml --data.bbox true --out elsewhere\n"
        "  %(prog)s runs/NAME --trainer.devices 4 --trainer.strategy ddp",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="such as runs/NAME/checkpoints/best.ckpt, or runs/NAME"
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test", "all"), default="test", help="which images (default: test)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: beside the run's folder)")
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    find_checkpoint(args.checkpoint)

    from cxlp.runs.retest import retest

    return retest(args.checkpoint, args.rest, args.split, args.out)
