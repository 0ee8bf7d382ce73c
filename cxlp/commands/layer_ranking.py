"""``cxlp layers NAME --data SET``: rank pairs of a network's layers on a data set's training images."""

import json
import shlex
import tempfile
from argparse import Namespace
from dataclasses import asdict

import pytorch_lightning as pl
from rich.table import Table

from cxlp.backbones.backbone import BackboneConfig
from cxlp.backbones.feature_extraction import Activation
from cxlp.commands.layers import table_console
from cxlp.data import data_module
from cxlp.data.datamodule import ImageDataModule
from cxlp.runs.bars import StageBar
from cxlp.runs.cli import quiet
from cxlp.runs.layers import IMAGES, Ranking, rank_layers
from cxlp.tasks.ranking import LayerRanking
from cxlp.utils.errors import CxlpError
from cxlp.utils.precision import fastest_precision


def rank(args: Namespace) -> int:
    """Rank pairs of layers, and print the ranking; return the exit status."""
    quiet()
    pl.seed_everything(0, verbose=False)  # for random weights
    data = data_module(args.data, args.root)
    if args.bbox and not hasattr(data, "bbox"):
        raise CxlpError(f"--bbox: {args.data} has no boxes")
    if args.bbox:
        data.bbox = True  # type: ignore[attr-defined]
    data.prepare_data()
    data.setup()
    weights = None if args.weights in ("none", "null") else args.weights
    backbone = BackboneConfig(args.name, weights=weights, image_size=args.image_size)
    activations: tuple[Activation, ...] = ("after", "before") if args.activation == "both" else (args.activation,)
    ranking = rank_layers(backbone, data, _fit, args.images or IMAGES, args.depth, activations)
    if args.json:
        pairs = [
            asdict(pair) | {"interval": None if pair.interval is None else pair.interval._asdict()}
            for pair in ranking.pairs
        ]
        found = {"name": args.name, "images": ranking.images, "metric": ranking.metric, "pairs": pairs}
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    _show(args.name, data.name, ranking, args.weights)
    return 0


def _fit(task: LayerRanking, part: ImageDataModule) -> None:
    """Fit with one device, and leave no files."""
    with tempfile.TemporaryDirectory() as place:
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            precision=fastest_precision().name,
            max_epochs=1,
            num_sanity_val_steps=0,
            callbacks=[StageBar("layers")],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=place,
        )
        trainer.fit(task, part)


def _show(name: str, data: str, ranking: Ranking, weights: str) -> None:
    """Print the ranking, and the options for a run with the best pair."""
    both = len({pair.activation for pair in ranking.pairs}) > 1
    table = Table("lower", "upper", title=f"{name}, {ranking.images:,} training images of {data}")
    if both:
        table.add_column("activation")
    for column in ("cv %" if ranking.metric == "accuracy" else "cv mAP %", "95 %", "values", "Mflop"):
        table.add_column(column, justify="right")
    for pair in ranking.pairs:
        ends = pair.interval
        table.add_row(
            *pair.layers,
            *([pair.activation] if both else []),
            f"{100 * pair.quality:.1f}",
            "" if ends is None else f"{100 * ends.low:.1f} to {100 * ends.high:.1f}",
            f"{pair.values:,}",
            f"{2e-6 * pair.work:.0f}",
        )
    console = table_console()
    console.print(table)
    best = ranking.pairs[0]
    tapped = "" if best.activation == "after" else f" --model.backbone.activation {best.activation}"
    value = "null" if weights == "none" else shlex.quote(weights)
    loaded = "" if weights == "default" else f" --model.backbone.weights {value}"
    layers = f"--model.backbone.layers '[{best.lower}, {best.upper}]' --model.head.pca_dim {best.pca_dim}"
    if equal := sum(pair.quality == best.quality for pair in ranking.pairs[1:]):
        console.print(f"{equal:,} other pairs have the same {ranking.metric}: the first one costs least")
    console.print(f"best pair: --model.backbone.name {name} {layers}{tapped}{loaded}")
