"""The frozen mode: fit projection and classifier as in the paper, without gradients."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.gram import combine_rows, gram_matrix
from cxlp.frozen.maps import MapStore
from cxlp.frozen.projections import ProjectionFit, random_places
from cxlp.frozen.store import FeatureType, RowStore, check_shared, check_space, open_rows
from cxlp.frozen.svm import HeldOut, choose_c, cross_validate, fit_logit_scale, quality, solve
from cxlp.heads.cross_layer import local_vectors, project
from cxlp.heads.fisher_vector import Codebook
from cxlp.heads.trained_guide import TrainedGuidePooling
from cxlp.models.branch import Part
from cxlp.models.network import Network
from cxlp.utils.distributed import (
    all_sum,
    barrier,
    from_rank_zero,
    local_world_size,
    on_rank_zero,
    rank,
    usable_cores,
    world_size,
)
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets, strata
from cxlp.utils.profiling import PhaseTimes


@dataclass(frozen=True)
class FrozenConfig:
    """Options of the fit without gradients.

    Attributes:
        c: Cost C of the SVMs; ``auto``: chosen among ``c_candidates`` by cross-validation on the
            training Gram matrix (accuracy, or with several labels per image the mean average precision).
        c_candidates: What is tried where ``c`` is ``auto``.
        folds: Folds of the cross-validation (for C, and for the scale of the logits).
        pca_vectors: About how many local features the PCA sees; each image gives the same number of
            them, at random places that depend on the image's position only.
        features: How pooled training features are stored: ``float32``; ``float16``, half the size; ``sign``,
            two bits a value, for networks whose pooling keeps signs only.
        store: A folder in which features are kept for later runs that need the same ones; null: deleted after the fit.
    """

    c: float | Literal["auto"] = 10.0
    c_candidates: Sequence[float] = (0.1, 1.0, 10.0, 100.0)
    folds: int = 5
    pca_vectors: int = 100_000
    features: FeatureType = "float32"
    store: str | None = None

    def __post_init__(self) -> None:
        costs = self.c_candidates if self.c == "auto" else [self.c]
        if not costs or not all(cost > 0 for cost in costs):
            key = "c_candidates" if self.c == "auto" else "c"
            raise CxlpError(f"model.frozen.{key} is {getattr(self, key)}: a cost C must be greater than 0")
        if self.folds < 2:
            raise CxlpError(f"model.frozen.folds is {self.folds}: cross-validation needs 2 or more")
        if self.pca_vectors < 1:
            raise CxlpError(f"model.frozen.pca_vectors is {self.pca_vectors}: it must be 1 or more")


#: Images per step of training a guide, over all ranks.
GUIDE_BATCH = 64


def _check_type(kind: FeatureType, network: Network) -> None:
    """Refuse to keep two bits of what is more than signs, or half precision of what may be large."""
    parts = list(network.each_part())
    if kind == "float16" and not all(part.config.l2 for part in parts):
        raise CxlpError(
            "model.frozen.features is float16, which overflows at 65,504: it takes vectors of unit length, "
            "model.network.pooling.l2: true"
        )
    if kind != "sign":
        return
    if len(parts) > 1 or not (parts[0].config.sign and parts[0].config.l2):
        raise CxlpError(
            "model.frozen.features is sign, but the network's vectors are more than signs: it takes a single part with "
            "model.network.pooling.sign: true and l2: true"
        )


def count_folds(labels: Tensor, classes: Sequence[str], config: FrozenConfig, cross: bool) -> int:
    """How many folds there can be: as many as asked for, or as images of the rarest class.

    Args:
        labels: Of the training images, see :mod:`cxlp.utils.labels`.
        classes: Names.
        config: Options.
        cross: Whether the classifiers of the folds are wanted.

    Raises:
        CxlpError: If there is one at most, and it is needed.
    """
    images = (as_targets(labels, len(classes)) == 1).sum(dim=1)
    folds = min(config.folds, int(images.min()))
    if folds < 2 and (cross or config.c == "auto"):
        needing = "model.cross_fit" if cross else "model.frozen.c: auto"
        raise CxlpError(
            f"{needing} needs two training images of each class, but {classes[int(images.argmin())]!r} has "
            f"{int(images.min())}"
        )
    return folds


class FrozenFit:
    """Fits a network's projections (PCA), codebooks and classifier (SVMs) to one pass over the training images.

    Each image is decoded and sent through the backbone once: :meth:`observe` feeds the PCA and
    keeps the maps on disk (they are smaller than what is pooled from them); :meth:`finish`
    solves the PCA, fits what lies behind it, encodes the kept maps, and solves the SVMs. What needs no
    fit is encoded at once. Memory holds one batch, one block of features, the d x d scatter and the n x n
    Gram matrix, whatever the number of features.

    With several ranks, each observes its share of the images and all call :meth:`finish` together;
    they end with the same weights.

    Args:
        network: With its classes set; on the device to work on.
        config: Options.
        images: n, the number of training images over all ranks.
        folder: Where features and maps are kept meanwhile; all ranks name the same one.
        times: Gets the time of each phase.
        progress: Whether rank 0 shows bars.
        stored: Whether the features lie in ``folder`` already, and the network's parts are fitted: then
            only the SVMs are.
        keep: Whether the features are to stay there.
        cross: Whether the classifiers of the cross-validation are wanted, too: :attr:`fold_classifiers`, after
            :meth:`finish`.
        settled: C and the scale of the logits, where they are known: then nothing is cross-validated. Features that
            were trained with these labels are no ground for it.
    """

    def __init__(
        self,
        network: Network,
        config: FrozenConfig,
        images: int,
        folder: Path,
        times: PhaseTimes,
        progress: bool = True,
        stored: bool = False,
        keep: bool = False,
        cross: bool = False,
        settled: tuple[float, float] | None = None,
    ) -> None:
        self.network, self.config, self.images, self.folder, self.times = network, config, images, folder, times
        self.progress, self.stored, self.keep, self.cross = progress, stored, keep, cross
        self.settled = settled
        self.fold_classifiers: FoldClassifiers | None = None
        self.device = network.backbone.mean.device
        per_image = (len(network.classes),) if network.multi_label else ()
        self.labels = torch.zeros(images, *per_image, dtype=torch.int64)
        self.seen = torch.zeros(images, dtype=torch.int64)
        self.positions: list[int] = []  # of this rank's images, in the order of its map store
        self.maps: MapStore | None = None
        #: Of the parts that have something to fit: by their place among the network's parts.
        self.projections: dict[int, ProjectionFit] = {}
        self.columns: list[int] = []  # where each part's vector begins in a row
        width = 0
        for i, part in enumerate(network.each_part()):
            self.columns.append(width)
            width += part.out_features
            if not stored and (part.projection is not None or part.guide_projection is not None):
                self.projections[i] = ProjectionFit(part, images, self._per_image, self.device)
                self._check_codebook(part)
        _check_type(config.features, network)
        if not stored:
            check_shared(folder)
        self.features = open_rows(
            folder / "features.bin", images, network.out_features, config.features, to_write=not stored
        )
        if not self.projections and not stored:  # else the maps count, too, once their size is known
            on_rank_zero(lambda: self._check_space(0))

    @torch.no_grad()
    def observe(self, images: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Take in a batch.

        Args:
            images: ``(b, 3, H, W)`` on the network's device; not looked at where the features are stored.
            labels: ``(b,)`` or ``(b, classes)``, see :mod:`cxlp.utils.labels`.
            positions: ``(b,)`` each image's place among the n, no place twice.
        """
        positions = positions.cpu()
        self.labels[positions] = labels.cpu()
        self.seen[positions] += 1
        if len(images) == 0 or self.stored:
            return
        inputs = self.network.inputs(images)
        for i, part in enumerate(self.network.each_part()):
            if i in self.projections:
                self.projections[i].observe(inputs[i], positions)
            else:
                self.features.write(positions, self.network.encode(part, inputs[i]), self.columns[i])
        if not self.projections:
            return
        waiting = [inputs[i] for i in self.projections]
        if self.maps is None:
            share = -(-self.images // world_size())
            names = [self._part(i).map_names for i in self.projections]
            self.maps = MapStore(self.folder / f"maps-{rank()}.bin", share, names, len(images), waiting)
            if rank() == 0:  # not on_rank_zero: another rank may have no image, and never come here
                self._check_space(self.maps.rows.row_bytes)
        self.maps.append(waiting)
        self.positions += positions.tolist()

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Solve; the network's weights are the solution afterwards.

        Returns:
            What was chosen and found: ``C``, ``logit_scale``, ``cv_accuracy`` (cross-validated on
            the training images) and the like.

        Raises:
            CxlpError: If images were left out, or a class has a single one where the cross-validation is needed.
        """
        all_sum(self.seen)
        all_sum(self.labels)
        if not bool((self.seen == 1).all()):
            raise CxlpError(
                f"the frozen fit needs each of the {self.images} training images once, it saw "
                f"{int((self.seen > 0).sum())}: run without limit_train_batches and fast_dev_run"
            )
        if self.projections:
            with self.times.measure("PCA"):
                for fit in self.projections.values():
                    fit.solve()
            for place, i in enumerate(self.projections):
                self._learn(place, self._part(i))
            with self.times.measure("pooling"):
                self._pool()
            self._drop_maps()  # before the barrier: rank 0 removes the folder once it is empty
        if not self.stored:
            self.features.sync()
        barrier()
        self.features.reopen()  # a network disk shows what others wrote to those who open after them
        with self.times.measure("Gram matrix"):
            gram = gram_matrix(self.features, self.device, progress=self.progress).numpy()
        with self.times.measure("SVM"):
            report = self._fit_classifier(gram)
        barrier()
        self.close(self.keep)
        return report

    def close(self, keep: bool) -> None:
        """Close the stores; delete the maps and, unless they are to be kept, the features."""
        self.features.close()
        self._drop_maps()
        if rank() == 0 and not keep and not self.stored:
            self.features.path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _drop_maps(self) -> None:
        if self.maps is not None:
            self.maps.delete()
            self.maps = None

    def _check_space(self, map_bytes: int) -> None:
        """Refuse what will not fit; the maps' size is known where the first images have come."""
        check_space(self.folder, (map_bytes + self.features.row_bytes) * self.images)

    def _part(self, i: int) -> Part:
        part = self.network.parts[i]
        assert isinstance(part, Part)
        return part

    def _check_codebook(self, part: Part) -> None:
        """Refuse, on all ranks and before the pass, what the codebook would refuse after it."""
        if isinstance(part.encoding, Codebook):
            part.encoding.check_enough(self.images * min(part.local_features, self._per_image))

    @property
    def _per_image(self) -> int:
        """How many local features each image gives to PCA and codebook, if it has so many."""
        return -(-self.config.pca_vectors // self.images)

    def _learn(self, place: int, part: Part) -> None:
        """Fit what an encoding has besides the PCA: a codebook or a trained guide."""
        encoding = part.encoding
        if isinstance(encoding, Codebook):
            with self.times.measure("codebook"):
                vectors = self._sample_projected(place, part)
                on_rank_zero(lambda: encoding.learn(vectors))
                for value in encoding.buffers():
                    from_rank_zero(value)
        elif isinstance(encoding, TrainedGuidePooling):
            with self.times.measure("guide"):
                self._train_guide(place, part, encoding)

    def _projected(self, place: int, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's local features after the PCA, ``(b, N, p)``, and the positions of their images."""
        if self.maps is None:  # more ranks than images
            return
        assert part.projection is not None
        for start, waiting in self.maps.batches(self.device):
            x = local_vectors(project(part.projection, waiting[place][0]), part.views)
            yield x, torch.tensor(self.positions[start : start + len(x)])

    def _sample_projected(self, place: int, part: Part) -> Tensor:
        """Projected local features of all ranks ``(n k, p)``, k at random places of each image, on the CPU."""
        assert part.projection is not None
        k = min(part.local_features, self._per_image)
        found = torch.zeros(self.images, k, part.projection.out_channels)
        for x, positions in self._projected(place, part):
            places = random_places(x.shape[1], k, positions).to(x.device).unsqueeze(2)
            found[positions] = torch.take_along_dim(x, places, dim=1).cpu()
        return all_sum(found).flatten(0, 1)

    def _train_guide(self, place: int, part: Part, encoding: TrainedGuidePooling) -> None:
        """Train a guide on local features that lie on disk, projected: each pass reads them once."""
        assert part.projection is not None
        shape = part.local_features, part.projection.out_channels
        rows = max(1, len(self.positions))
        store = RowStore(self.folder / f"projected-{rank()}.bin", rows, shape[0] * shape[1])
        try:
            on_rank_zero(lambda: check_space(self.folder, self.images * store.row_bytes))
            start = 0
            for x, _ in self._projected(place, part):
                store.write(torch.arange(start, start + len(x)), x.flatten(1))
                start += len(x)
            row = {position: i for i, position in enumerate(self.positions)}
            # A mixed order, the same on each rank: data sets list one class after another.
            order = torch.randperm(self.images, generator=torch.Generator().manual_seed(0))

            def batches() -> Iterator[tuple[Tensor, Tensor]]:
                for chosen in torch.split(order, GUIDE_BATCH):
                    mine = [position for position in chosen.tolist() if position in row]
                    x = torch.zeros(len(mine), *shape)
                    for i, position in enumerate(mine):
                        x[i] = store.read(row[position], row[position] + 1).view(shape)
                    yield x.to(self.device), self.labels[mine].to(self.device)

            encoding.learn(batches, len(self.network.classes))
        finally:
            store.close()
            store.path.unlink()

    def _pool(self) -> None:
        """Encode this rank's kept maps into the shared store of features."""
        if self.maps is None:  # more ranks than images
            return
        bar = tqdm(desc="Pooling", total=len(self.positions), disable=not self.progress or rank() != 0, leave=False)
        for start, waiting in self.maps.batches(self.device):
            for i, maps in zip(self.projections, waiting, strict=True):
                part = self._part(i)
                features = self.network.encode(part, maps)
                positions = torch.tensor(self.positions[start : start + len(features)])
                self.features.write(positions, features, self.columns[i])
            bar.update(len(positions))
        bar.close()

    def _fit_classifier(self, gram: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> dict[str, float]:
        classifier = self.network.classifier
        assert classifier is not None
        targets = as_targets(self.labels, len(self.network.classes)).numpy()
        threads = max(1, usable_cores() // local_world_size())
        if self.settled is None:
            report = self._cross_validate(gram, targets, threads)
        else:
            report = dict(zip(("C", "logit_scale"), self.settled, strict=True))
        solution, scale = solve(gram, targets, report["C"], threads), report["logit_scale"]
        # The scale is part of the weights, not a factor behind them: a factor s would multiply the steps of
        # gradient descent by s^2, and no learning rate would suit two data sets.
        weights = combine_rows(self.features, torch.from_numpy(scale * solution.coefficients), self.device)
        classifier.weight.copy_(from_rank_zero(weights))
        classifier.bias.copy_(from_rank_zero(torch.from_numpy(scale * solution.intercepts)))
        return report

    def _cross_validate(
        self, gram: np.ndarray[tuple[int, int], np.dtype[np.float64]], targets: NDArray[np.int8], threads: int
    ) -> dict[str, float]:
        """Choose C where it is ``auto``, and fit the scale of the logits."""
        labels, c = self.labels, self.config.c
        folds = count_folds(labels, self.network.classes, self.config, self.cross)
        name = "cv_mAP" if self.network.multi_label else "cv_accuracy"
        report: dict[str, float] = {}
        if c == "auto":
            c, found = choose_c(gram, targets, labels, self.config.c_candidates, folds, threads)
            report |= {f"{name}_C{candidate:g}": value for candidate, value in found.items()}
        report["C"] = c
        scale = 1.0
        if folds < 2:
            warnings.warn("a class has a single training image: the scale of the logits stays 1", stacklevel=2)
        else:
            held_out = cross_validate(gram, targets, strata(labels, folds).numpy(), c, folds, threads)
            report[name] = quality(held_out.scores, labels)
            scale = fit_logit_scale(held_out.scores, labels)
            if self.cross:
                self.fold_classifiers = self._fold_classifiers(held_out, scale)
        report["logit_scale"] = scale
        return report

    def _fold_classifiers(self, held_out: HeldOut, scale: float) -> FoldClassifiers:
        """From dual coefficients to weights, at the scale of the logits."""
        coefficients = np.concatenate([solution.coefficients for solution in held_out.solutions])
        intercepts = np.stack([solution.intercepts for solution in held_out.solutions])
        weights = combine_rows(self.features, torch.from_numpy(scale * coefficients), self.device)
        return FoldClassifiers(
            from_rank_zero(weights).view(*intercepts.shape, -1),
            from_rank_zero(torch.from_numpy(scale * intercepts)).to(self.device, torch.float32),
            torch.from_numpy(held_out.folds).to(self.device),
        )
