"""``model.backbone.layers: auto``: rank pairs of layers on a part of the training images, and choose the best pair."""

import copy
import csv
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import BaseFileLock
from jsonargparse import Namespace
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.utilities.seed import isolate_rng

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.backbones.feature_extraction import Activation
from cxlp.data.datamodule import ImageDataModule
from cxlp.data.splitting import draw_some
from cxlp.frozen.pairs import Pair, RankedPair, find_candidates, layers_of, ranking_network, usable_pairs
from cxlp.heads.base import Head
from cxlp.metrics.classification import SELECTION
from cxlp.metrics.intervals import Interval
from cxlp.reports.formatting import as_csv
from cxlp.runs.folder import read_run
from cxlp.runs.launch import launched_rank
from cxlp.runs.loggers import RunConfig
from cxlp.runs.places import STARTS, start_checkpoint
from cxlp.runs.recipe import ModelConfig
from cxlp.runs.refit import read_chosen
from cxlp.runs.trainers import build_trainer, without_gradients
from cxlp.tasks.ranking import LayerRanking
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import delete_abandoned, hold_part, release_lock
from cxlp.utils.starting import watching_start

#: Approximate number of training images for the ranking, and the minimum per class (a smaller class gives all).
IMAGES, PER_CLASS = 400, 4
#: Beginning of error messages.
_AUTO = "model.backbone.layers is auto"
#: File with the ranking in the run's folder.
FILE = "layers.csv"


@dataclass(frozen=True)
class Ranking:
    """A ranking of pairs of layers.

    Attributes:
        pairs: The pairs, best first, see :class:`~cxlp.frozen.pairs.PairFit`.
        images: Number of images used.
        metric: ``accuracy`` or ``mAP``.
    """

    pairs: tuple[RankedPair, ...]
    images: int
    metric: str

    def as_csv(self) -> str:
        """Format the ranking as CSV."""
        heads = (
            "lower",
            "upper",
            "activation",
            f"cv_{self.metric}",
            "low",
            "high",
            "pca_dim",
            "values",
            "multiply_adds",
            "images",
        )
        rows = [
            (*pair.layers, pair.activation, pair.quality, *(pair.interval or ("", ""))[:2])
            + (pair.pca_dim, pair.values, pair.work, self.images)
            for pair in self.pairs
        ]
        return as_csv(heads, rows)

    @classmethod
    def from_csv(cls, text: str) -> "Ranking":
        """Parse the output of :meth:`as_csv`."""
        heads, *rows = csv.reader(io.StringIO(text))
        metric = heads[3].removeprefix("cv_")
        by = "Wilson" if metric == "accuracy" else "bootstrap"
        pairs = [
            RankedPair(
                *(lower, upper, float(quality), Interval(float(low), float(high), by) if low else None),
                *(int(dim), int(values), int(work), activation),
            )
            for lower, upper, activation, quality, low, high, dim, values, work, _ in rows
        ]
        return cls(tuple(pairs), int(rows[0][-1]), metric)


def rank_layers(
    backbone: BackboneConfig,
    data: ImageDataModule,
    fit: Callable[[LayerRanking, ImageDataModule], None],
    images: int = IMAGES,
    depth: int | None = None,
    activations: Sequence[Activation] = (),
    heads: Sequence[Head] = (),
) -> Ranking:
    """Rank pairs of a network's layers by cross-validation on a part of the training images.

    Args:
        backbone: The network; its ``layers`` are not used.
        data: The data, after ``setup``; validation and test images are not used.
        fit: Runs ``Trainer.fit``.
        images: Approximate number of images, see :func:`~cxlp.data.splitting.draw_some`.
        depth: See :func:`~cxlp.frozen.pairs.find_candidates`.
        activations: Whether to tap layers after the activation that follows them, before it, or both; empty: as in
            ``backbone``.
        heads: Heads that must accept at least one of the pairs.

    Raises:
        CxlpError: If the network has no pairs, the heads accept none, or a class has a single image.
    """
    candidates = find_candidates(backbone.name, backbone.image_size, depth)
    samples = draw_some(data.splits["train"].samples, images, PER_CLASS)
    part = copy.copy(data)
    # The ranking uses the size of the backbone's input, not that of the images from which views are cut.
    part.trainer, part.image_size = None, None
    part.splits = {
        "train": data.dataset(samples, data.classes),
        "val": data.dataset([], data.classes),
        "test": data.dataset([], data.classes),
    }
    ranked: list[RankedPair] = []
    for number, activation in enumerate(activations or (backbone.activation,)):
        # A pair that no activation follows is the same before and after it.
        tried = [pair for pair in candidates.pairs if not number or candidates.activated.intersection(pair)]
        if not tried:
            continue
        settled = replace(backbone, activation=activation, image_size=candidates.image_size)
        with isolate_rng(include_cuda=False):  # random weights are the same for both activations
            trunk = Backbone.from_config(replace(settled, layers=tuple(layers_of(tried)))).eval()
            usable, why = usable_pairs(trunk, tried, heads)
            if not usable:
                raise CxlpError(f"{_AUTO}, but the head accepts none of {len(tried)} pairs: {why}")
            task = LayerRanking(ranking_network(trunk, tried, len(samples), data.classes, data.multi_label))
            fit(task, part)
        ranked += task.ranked
    ranked.sort(key=RankedPair.order)
    return Ranking(tuple(ranked), len(samples), SELECTION[data.multi_label])


def choose_pair(ranking: Ranking, backbone: BackboneConfig, heads: Sequence[Head]) -> tuple[Pair, str]:
    """Choose the best pair that the heads accept.

    Returns:
        The pair, and a line about it for the terminal.

    Raises:
        CxlpError: If the heads accept none.
    """
    layers = layers_of([pair.layers for pair in ranking.pairs])
    trunk = Backbone.from_config(replace(backbone, layers=tuple(layers), weights=None))
    usable, why = usable_pairs(trunk, [pair.layers for pair in ranking.pairs], heads)
    if not usable:
        raise CxlpError(f"{_AUTO}, but the head accepts none of {len(ranking.pairs)} pairs: {why}")
    best, pair = ranking.pairs[0], next(pair for pair in ranking.pairs if pair.layers == usable[0])
    interval = "" if pair.interval is None else f" ({100 * pair.interval.low:.1f} to {100 * pair.interval.high:.1f})"
    said = (
        f"layers: {pair.lower}, {pair.upper}, cross-validated {ranking.metric} {100 * pair.quality:.1f} %{interval} on "
        f"{ranking.images:,} training images, the best of {len(ranking.pairs)} pairs"
    )
    if pair is not best:
        _, why = usable_pairs(trunk, [best.layers], heads)
        how = "better" if pair.quality < best.quality else "as good and costs less"
        said += f" ({best.lower}, {best.upper} is {how}, but the head does not accept it: {why})"
    elif equal := sum(other.quality == pair.quality for other in ranking.pairs) - 1:
        said += f" ({equal:,} others are as good and cost more)"
    return pair.layers, said


def read_earlier_layers(model: ModelConfig, run: RunConfig, saved: Mapping[str, Any] | None) -> Pair | None:
    """Return the layers of the run that this run resumes, refits or starts from; ``None`` if there is no such run.

    Args:
        model: Its ``layers`` are ``auto``.
        run: Options of the run.
        saved: Content of the checkpoint that the run resumes from.
    """
    if saved is None and isinstance(run.refit, str):
        saved = read_chosen(run.refit)
    if saved is None and model.start not in STARTS:
        saved = read_run(start_checkpoint(model.start))
    return None if saved is None else tuple(saved["cxlp_run"]["recipe"]["model.backbone.layers"])


def rank_in_run(config: Namespace, model: ModelConfig, data: ImageDataModule) -> Ranking:
    """Rank pairs of layers with the Trainer of a run; all its processes call this together and get the same ranking.

    Args:
        config: The resolved config, with ``model.backbone.layers: auto``.
        model: The model part of the config.
        data: The data, after ``setup``.

    Raises:
        CxlpError: If a head names layers, or for the reasons of :func:`rank_layers`.
    """
    for head in model.heads:
        if head.layers is not None:
            raise CxlpError(
                f"{_AUTO}, which chooses two layers, but {head.name} names {list(head.layers)}: "
                "leave model.head.layers out, or name the backbone's layers"
            )
    root = place = Path(config["run"]["root"])
    lock: BaseFileLock | None = None
    if launched_rank() == 0:
        try:
            root.mkdir(parents=True, exist_ok=True)
            # A process that was killed has left its folder, which can be as large as the maps of all images.
            delete_abandoned({path.with_suffix("") for path in root.glob(".layers-*")})
            place = root / f".layers-{token_hex(4)}"
            lock = hold_part(place)
            place.mkdir()
        except OSError as error:
            raise CxlpError(f"cannot write to {root}: {error.strerror}. Give another --run.root") from error

    def tidy() -> None:
        if lock is not None:
            shutil.rmtree(place, ignore_errors=True)
            release_lock(lock)

    def fit(task: LayerRanking, part: ImageDataModule) -> None:
        precision = without_gradients(config["trainer"]).name
        met = LambdaCallback(on_train_start=lambda *_: have_met.set())
        trainer = build_trainer(config, "layers", place, [met], [], None, refit=False, precision=precision)
        launcher = trainer.strategy.launcher
        with watching_start(lambda: getattr(launcher, "procs", []), tidy) as have_met:
            trainer.fit(task, part)

    try:
        return rank_layers(model.backbone, data, fit, heads=model.heads)
    finally:
        tidy()
