"""``cxlp explain``: attribute the scores of images to places and pooling channels."""

import json
import math
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxlp.commands import check_images, check_numbers, warn_about_boxes
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint, out_folder

if TYPE_CHECKING:
    from torch import Tensor

    from cxlp.deploy.predictor import Predictor
    from cxlp.explain.attribution import Explanation
    from cxlp.models.network import Network

#: Default of --limit without --patches: one picture is drawn per image.
LIMIT = 50
#: Maximum number of channels in one picture.
MAX_CHANNELS = 64
#: Side of a patch in the picture of patches, pixels.
PATCH = 96
#: Batch size.
BATCH = 16


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "explain",
        help="show which places and pooling channels contribute to an image's score",
        description="Split the score of a class exactly into shares of places and of pooling channels: the shares and\n"
        "the bias add up to the score. The command draws one picture per image, with the evidence and the\n"
        "strongest channels, and writes evidence.json. With --patches it draws one picture of the patches to\n"
        "which the strongest channels respond across all images (patches.png, patches.json). The score is that\n"
        "of the whole image, without test views.\n"
        "Exit status: 0 all images were read and all pictures written; 1 some were not; 2 the arguments are wrong.",
        epilog="examples:\n"
        "  %(prog)s runs/NAME/checkpoints/best.ckpt bird.jpg\n"
        "  %(prog)s runs/NAME/checkpoints/best.ckpt photos/ --class wren --against robin\n"
        "  %(prog)s runs/NAME/checkpoints/best.ckpt data/folder/test --patches",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="such as runs/NAME/checkpoints/best.ckpt, or runs/NAME"
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="images, folders or quoted patterns; -: read paths from stdin"
    )
    parser.add_argument(
        "--class",
        group="what is explained",
        dest="target",
        metavar="NAME",
        help="explain the score of this class (default: the predicted class)",
    )
    parser.add_argument(
        "--against",
        group="what is explained",
        metavar="NAME",
        help="explain the difference from this class's score (default of --class: the best other class)",
    )
    parser.add_argument(
        "--patches",
        group="what is explained",
        action="store_true",
        help="draw the patches with the strongest activations across the images",
    )
    parser.add_argument(
        "--channels",
        group="what is explained",
        type=int,
        default=8,
        metavar="K",
        help="show the K strongest channels (default: 8)",
    )
    parser.add_argument(
        "--indices",
        group="what is explained",
        type=int,
        nargs="+",
        metavar="N",
        help="show these channels instead, counted from 0 over all heads",
    )
    parser.add_argument(
        "--limit",
        group="what is explained",
        type=int,
        metavar="N",
        help=f"explain only the first N images (default: {LIMIT}; with --patches: all)",
    )
    parser.add_argument(
        "--out",
        group="output",
        type=Path,
        metavar="DIR",
        help="output folder (default: explained/, explained-2/, ... in the run's folder)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    if not 1 <= args.channels <= MAX_CHANNELS or len(args.indices or ()) > MAX_CHANNELS:
        raise CxlpError(f"--channels, --indices: one picture shows 1 to {MAX_CHANNELS} channels")
    check_numbers(args, limit=1)
    checkpoint = find_checkpoint(args.checkpoint)
    check_images(args.images)

    from cxlp.deploy.image_paths import image_paths, lines_of_stdin
    from cxlp.deploy.loading import load
    from cxlp.explain.attribution import check_explainable

    model = load(checkpoint, "auto")
    model.check_classes()
    check_explainable(model.network)
    target, against = (None if name is None else model.index(name) for name in (args.target, args.against))
    if target is not None and target == against:
        raise CxlpError(f"--class and --against are both {args.target!r}: give two classes")
    warn_about_boxes(model)
    files = list(image_paths(args.images, lines_of_stdin()))
    limit = args.limit or (len(files) if args.patches else LIMIT)
    if len(files) > limit:
        print(  # noqa: T201
            f"explaining the first {limit} of {len(files):,} images; --limit {len(files)} explains all", file=sys.stderr
        )
    source = _Source(model, files[:limit])
    out = args.out or _new(_run_folder(checkpoint) / "explained")
    with out_folder(out):
        (_patches if args.patches else _evidence)(source, target, against, args, out)
    return 1 if source.failed else 0


@dataclass
class _Source:
    """Images and the network that scores them. Unreadable images are reported on stderr and skipped.

    Attributes:
        failed: Number of images that could not be read, or whose pictures could not be written.
    """

    model: "Predictor"
    files: Sequence[str]
    failed: int = field(default=0, init=False)

    def explained(
        self, target: int | None, against: int | None
    ) -> Iterator[tuple[int, "Tensor", float, "Explanation"]]:
        """Yield each image's index, network input, height divided by width, and explanation."""
        import torch

        from cxlp.deploy.reading import read
        from cxlp.explain.attribution import explain
        from cxlp.utils.distributed import usable_cores

        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(self.files), BATCH):
                tried = enumerate(
                    pool.map(read, self.files[start : start + BATCH], repeat(self.model.transform)), start
                )
                good = []
                for number, found in tried:
                    if isinstance(found, str):
                        print(f"error: {found}", file=sys.stderr)  # noqa: T201
                        self.failed += 1
                    else:
                        good.append((number, *found))
                if good:
                    images = torch.stack([image for _, image, _ in good]).to(self.model.device)
                    explanations = explain(self.model.network, images, target, against)
                    for (number, image, proportion), explanation in zip(good, explanations, strict=True):
                        yield number, image, proportion, explanation

    def enlarged(self, number: int, size: int) -> "Tensor":
        """Read an image again, at another size than the network's input."""
        from cxlp.data.decode import read_image

        transform = self.model.transform.at(size)
        return transform(read_image(Path(self.files[number]), None, transform.needed(None)), None)


def _evidence(source: _Source, target: int | None, against: int | None, args: Namespace, out: Path) -> None:
    """Write one picture per image, and ``evidence.json`` with the records of all images."""
    from cxlp.reports.outputs import Outputs
    from cxlp.reports.overlays import draw_explanation, headline
    from cxlp.utils.files import write_whole

    network, records, note, outputs = source.model.network, [], "", Outputs()
    if network.test_view_count > 1:
        kind = network.test_views.kind
        note = f"Score of the whole image; the run's test score is the mean over its test views ({kind})."
        print(note, file=sys.stderr)  # noqa: T201
    for number, image, proportion, explanation in source.explained(target, against):
        path = source.files[number]
        channels = _chosen(args, explanation)
        stem = os.fsencode(Path(path).stem)[:80].decode(errors="ignore")  # limits the bytes: a character may have four
        picture = f"{number + 1:03d}-{stem}.png"
        with outputs.attempt(picture):
            drawn = draw_explanation(image, proportion, explanation, channels, network.classes, note)
            write_whole(out / picture, drawn)
        records.append({"image": path, "picture": picture, **_record(explanation, network, channels)})
        said = headline(explanation, network.classes).replace("\n", ", ")
        print(f"{path}: {said}" + (f" -> {out / picture}" if picture not in outputs.failed else ""))  # noqa: T201
    write_whole(out / "evidence.json", json.dumps(records, indent=1))
    source.failed += len(outputs.failed)


def _record(explanation: "Explanation", network: "Network", channels: Sequence[int]) -> dict[str, Any]:
    """Return an explanation as JSON values.

    ``evidence`` is the sum of the shares of all channels, and also of all places over all heads and views.
    """
    target, against = explanation.target, explanation.against
    shares = explanation.channels
    return {
        "class": network.classes[target],
        "against": None if against is None else network.classes[against],
        "probability": float(explanation.probabilities[target]),
        "score": explanation.score,
        "bias": explanation.bias,
        "evidence": explanation.evidence,
        "strongest": [{"channel": k, "share": float(shares[k])} for k in channels],
        "channels": shares.tolist(),
        "places": [part.places.tolist() for part in explanation.parts],
    }


def _patches(source: _Source, target: int | None, against: int | None, args: Namespace, out: Path) -> None:
    """Find each channel's strongest places in all images, then read those images again and cut the patches."""
    from cxlp.explain.patches import TopPlaces
    from cxlp.reports.overlays import draw_patches
    from cxlp.utils import spelling
    from cxlp.utils.files import write_whole
    from cxlp.utils.progress import track

    top = TopPlaces()
    explained = source.explained(target, against)
    for number, _, _, explanation in track(explained, "Explaining", len(source.files)):
        if not top.images:
            _chosen(args, explanation)  # checks --indices before the work begins
        top.update(number, explanation)
    if not top.images:
        raise CxlpError("--patches: no image could be read")
    channels = args.indices or top.strongest(args.channels)
    patches = {channel: top.patches(channel) for channel in channels}
    cut: dict[tuple[int, int], Tensor] = {}
    for number in sorted({patch.image for found in patches.values() for patch in found}):
        wanted = [(c, i, p) for c, found in patches.items() for i, p in enumerate(found) if p.image == number]
        sizes = {math.ceil(PATCH / patch.side) for _, _, patch in wanted}
        at = {size: source.enlarged(number, size) for size in sizes}
        cut.update({(c, i): p.cut(at[math.ceil(PATCH / p.side)]) for c, i, p in wanted})
    rows = [
        (
            f"channel {channel}\nmean |share| {top.mean_size(channel):.3f}\nmean share {top.mean_share(channel):+.3f}",
            [(cut[channel, i], spelling.number(patch.activation)) for i, patch in enumerate(found)],
        )
        for channel, found in patches.items()
    ]
    write_whole(out / "patches.png", draw_patches(rows))
    records = [
        {
            "channel": channel,
            "mean_absolute_share": top.mean_size(channel),
            "mean_share": top.mean_share(channel),
            "patches": [
                {
                    "image": source.files[patch.image],
                    "activation": patch.activation,
                    "box": [patch.left, patch.top, patch.left + patch.side, patch.top + patch.side],
                }
                for patch in found
            ],
        }
        for channel, found in patches.items()
    ]
    write_whole(out / "patches.json", json.dumps(records, indent=1))
    print(f"{len(channels)} channels over {top.images:,} images -> {out / 'patches.png'}")  # noqa: T201


def _chosen(args: Namespace, explanation: "Explanation") -> list[int]:
    """Return the channels to show: those of --indices, or those with the largest absolute shares."""
    shares = explanation.channels
    if args.indices:
        if wrong := [k for k in args.indices if not 0 <= k < len(shares)]:
            raise CxlpError(f"--indices {wrong[0]}: the network has pooling channels 0 to {len(shares) - 1}")
        return list(args.indices)
    return explanation.strongest(args.channels)


def _new(folder: Path) -> Path:
    """Return the folder or, if it exists, the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    number = 1
    place = folder
    while place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def _run_folder(checkpoint: Path) -> Path:
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder
