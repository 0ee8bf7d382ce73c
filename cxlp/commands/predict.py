"""``cxlp predict``: classify images with a checkpoint, and write a table."""

import io
import json
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cxlp.commands import check_images, check_numbers, check_out_file, warn_about_boxes
from cxlp.reports.formatting import csv_writer
from cxlp.utils.files import find_checkpoint

if TYPE_CHECKING:
    from cxlp.deploy.prediction import Prediction


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "predict",
        help="classify images with a checkpoint: classes and probabilities, as CSV or JSON lines",
        description="Write the most probable classes of images. The command needs only a checkpoint of train.py.\n"
        "It writes one row per file, in order, after each batch. A file that cannot be read gets a row with an\n"
        "error, and the others are still classified.\n"
        "Exit status: 0 all files were read; 1 some were not; 2 the arguments are wrong, or no path exists.",
        epilog="Images are resized with the options of the checkpoint's run, as in its test. A network that was\n"
        "trained on images cropped to boxes (--data.bbox true) expects cropped images.\n"
        "Probabilities are the softmax over all classes; for data with several labels per image, the sigmoid of\n"
        "each logit.\n\n"
        "examples:\n"
        "  %(prog)s runs/NAME/checkpoints/best.ckpt photo.jpg photos/ > predictions.csv\n"
        "  %(prog)s best.ckpt 'photos/**/*.png' --top 1 --format jsonl --out predictions.jsonl\n"
        "  find photos -newer yesterday -name '*.jpg' | %(prog)s best.ckpt -",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="such as runs/NAME/checkpoints/best.ckpt, or runs/NAME"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="images, folders or quoted patterns; -: read paths from stdin"
    )
    parser.add_argument("--format", group="output", choices=("csv", "jsonl"), default="csv", help="default: csv")
    parser.add_argument(
        "--out",
        group="output",
        type=Path,
        metavar="FILE",
        help="output file, which appears only when it is complete (default: stdout)",
    )
    parser.add_argument(
        "--top", group="output", type=int, default=5, metavar="K", help="number of classes per image (default: 5)"
    )
    parser.add_argument(
        "--batch-size", group="computing", type=int, default=32, metavar="N", help="images per batch (default: 32)"
    )
    parser.add_argument(
        "--workers",
        group="computing",
        type=int,
        metavar="N",
        help="processes that decode images; 0: the main process (default: one per core, at most 8; 0 with -)",
    )
    parser.add_argument(
        "--device", group="computing", default="auto", help="auto (the default), cpu, cuda, cuda:1, ..."
    )
    parser.add_argument("--precision", group="computing", choices=("32", "bf16"), default="32", help="default: 32")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    check_numbers(args, top=1, batch_size=1, workers=0)
    if args.out is not None:
        check_out_file(args.out)
    find_checkpoint(args.checkpoint)
    check_images(args.paths)

    from cxlp.deploy.image_paths import image_paths, lines_of_stdin
    from cxlp.deploy.loading import load
    from cxlp.utils.distributed import usable_cores
    from cxlp.utils.progress import track

    model = load(args.checkpoint, args.device, args.precision)
    model.check_classes()
    warn_about_boxes(model)
    top = min(args.top, len(model.classes))
    # Worker processes prefetch paths, so the rows of paths that arrive slowly on stdin would be delayed.
    workers = (0 if "-" in args.paths else min(8, usable_cores())) if args.workers is None else args.workers
    # Rows that appear on a terminal show the progress.
    hidden = args.out is None and sys.stdout.isatty()
    total = None if hidden or "-" in args.paths else sum(1 for _ in image_paths(args.paths, ()))
    found = model.stream(image_paths(args.paths, lines_of_stdin()), top, args.batch_size, workers)
    with _output(args.out, args.format) as file:
        row: Callable[[Prediction], str] = _json_row
        if args.format == "csv":
            row = partial(_csv_row, top=top)
            heads = [f"{what}_{k + 1}" for k in range(top) for what in ("class", "probability")]
            file.write(_csv(["path", *heads, "error"]))
        files, failed = _write(track(found, "Predicting", total, hidden=hidden), row, file)
    if not files:
        print("-: stdin has no paths", file=sys.stderr)  # noqa: T201
    if failed:
        print(f"{failed:,} of {files:,} files could not be read: see the errors in their rows", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


def _write(found: Iterable["Prediction"], row: Callable[["Prediction"], str], file: TextIO) -> tuple[int, int]:
    """Write one row per prediction; return the number of rows and of rows with errors."""
    files = failed = 0
    for each in found:
        file.write(row(each))
        file.flush()
        files, failed = files + 1, failed + bool(each.error)
    return files, failed


def _csv(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv_writer(line).writerow(cells)
    return line.getvalue()


def _csv_row(found: "Prediction", top: int) -> str:
    pairs = zip(found.classes, found.probabilities, strict=True)
    return _csv([found.path, *([c for name, p in pairs for c in (name, f"{p:.6g}")] or [""] * 2 * top), found.error])


def _json_row(found: "Prediction") -> str:
    probabilities = [float(f"{p:.6g}") for p in found.probabilities]
    row = {"path": found.path, "classes": found.classes, "probabilities": probabilities, "error": found.error or None}
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextmanager
def _output(path: Path | None, form: str) -> Iterator[TextIO]:
    """Open stdout, or a temporary file that is renamed to the output file when it is complete.

    File names that are not valid UTF-8 keep their bytes in CSV. In JSON, which must be UTF-8, they are escaped.
    """
    errors = "surrogateescape" if form == "csv" else "backslashreplace"
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors=errors)
        yield sys.stdout
        return
    path = path.resolve()  # replace a link's target, not the link
    if path.exists() and not path.is_file():  # a pipe, a device
        with path.open("w", encoding="utf-8", errors=errors, newline="") as file:
            yield file
        return
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8", errors=errors, newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
