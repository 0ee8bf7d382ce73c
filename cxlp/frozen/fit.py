"""The frozen mode: fit projection and classifier as in the paper, without gradients."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cxlp.frozen.checks import check_absent, check_labels, check_maps, check_type
from cxlp.frozen.classifier import choose_cost_and_scale, split
from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.maps import HeadMaps, MapStore, memory_for_maps
from cxlp.frozen.solvers import Plan, SolverName, make_solver, plan, tell_unsolved
from cxlp.frozen.store import FeatureType, check_shared, check_space, open_rows, row_bytes
from cxlp.heads.fitting import HeadFit, TrainingSet
from cxlp.models.network import Network
from cxlp.utils.distributed import all_sum, barrier, from_rank_zero, on_rank_zero, rank, world_size
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets
from cxlp.utils.profiling import PhaseTimes
from cxlp.utils.progress import bar, say

#: Each fold fits all SVMs anew, and more folds tell hardly more.
MOST_FOLDS = 100


@dataclass(frozen=True)
class FrozenConfig:
    """Options of the fit without gradients.

    Attributes:
        c: Cost C of the SVMs; ``auto``: chosen among ``c_candidates`` by cross-validation on the
            training images (accuracy, or with several labels per image the mean average precision).
        c_candidates: What is tried where ``c`` is ``auto``.
        folds: Folds of the cross-validation (for C, and for the scale of the logits), 2 to 100; no more are made than
            the rarest class has images.
        pca_vectors: About how many local features the PCA sees; each image gives the same number of
            them, at random places that depend on the image's position only.
        features: How pooled training features are stored: ``float32``; ``float16``, half the size; ``sign``,
            two bits a value, for networks whose pooling keeps signs only.
        solver: ``kernel``: libsvm on the n x n Gram matrix, as in the paper; ``primal``: Newton's method on blocks of
            rows, in bounded memory and in time that grows with n, not with its square, for a hinge with a rounded
            corner; ``auto``: the kernel, while it needs a quarter of the free memory at most.
        store: A folder in which features are kept for later runs that need the same ones; null: deleted after the fit.
    """

    c: float | Literal["auto"] = 10.0
    c_candidates: Sequence[float] = (0.1, 1.0, 10.0, 100.0)
    folds: int = 5
    pca_vectors: int = 100_000
    features: FeatureType = "float32"
    solver: SolverName = "auto"
    store: str | None = None

    def __post_init__(self) -> None:
        for key, costs in (("c", [] if self.c == "auto" else [self.c]), ("c_candidates", self.c_candidates)):
            if not all(0 < cost < math.inf for cost in costs):
                raise CxlpError(f"model.frozen.{key} is {getattr(self, key)}: a cost C is a number greater than 0")
        if not self.c_candidates:
            raise CxlpError("model.frozen.c_candidates is empty: give one cost C or more")
        if not 2 <= self.folds <= MOST_FOLDS:
            raise CxlpError(f"model.frozen.folds is {self.folds}: choose 2 to {MOST_FOLDS}")
        if self.pca_vectors < 1:
            raise CxlpError(f"model.frozen.pca_vectors is {self.pca_vectors}: it must be 1 or more")


def count_folds(labels: Tensor, classes: Sequence[str], config: FrozenConfig, needing: str = "") -> int:
    """How many folds there can be: as many as asked for, or as images of the rarest class.

    Args:
        labels: Labels of the training images, see :mod:`cxlp.utils.labels`.
        classes: Names.
        config: Options.
        needing: What cannot do without folds, beside a ``c`` that is ``auto``.

    Raises:
        CxlpError: If there is one at most, and it is needed.
    """
    images = (as_targets(labels, len(classes)) == 1).sum(dim=1)
    folds = min(config.folds, int(images.min()))
    needing = needing or ("model.frozen.c: auto" if config.c == "auto" else "")
    if folds < 2 and needing:
        raise CxlpError(
            f"{needing} needs two training images of each class, but {classes[int(images.argmin())]!r} has "
            f"{int(images.min())}"
        )
    return folds


class FrozenFit:
    """Fits a network's heads (PCA, codebooks) and its classifier (SVMs) to one pass over the training images.

    Each image is decoded and sent through the backbone once: :meth:`observe` shows the maps to the heads' own fits and
    keeps them, those of the first images in memory and the others on disk (they are smaller than what is pooled from
    them); :meth:`finish` has the heads solve, encodes the kept maps, and solves the SVMs. A head that has nothing to
    fit encodes at once. Few pooled features stay in memory, too, where a single process makes them for itself. Beside
    these, memory holds one batch, one block of features, the d x d scatter, and what the solver of the SVMs needs, see
    :mod:`cxlp.frozen.solvers`.

    With several ranks, each observes its share of the images and all call :meth:`finish` together, with one result.

    Args:
        network: With its classes set; on the device to work on.
        config: Options.
        images: n, the number of training images over all ranks.
        folder: Where features and maps are kept meanwhile; all ranks name the same one.
        times: Gets the time of each phase.
        progress: Whether rank 0 shows bars.
        stored: Whether the features lie in ``folder`` already, and the network's heads are fitted: then
            only the SVMs are.
        keep: Whether the features are to stay there.
        cross: Whether the classifiers of the cross-validation are wanted, too: :attr:`fold_classifiers`, after
            :meth:`finish`.
        settled: C and the scale of the logits, where they are known: then nothing is cross-validated. Cross-validation
            is biased on features that were trained with the same labels.
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
        if images < 1:
            raise CxlpError("there are no training images: the frozen fit needs one of each class")
        self.network, self.config, self.images, self.folder, self.times = network, config, images, folder, times
        self.progress, self.stored, self.keep, self.cross, self.settled = progress, stored, keep, cross, settled
        self.fold_classifiers: FoldClassifiers | None = None
        self.device = network.backbone.mean.device
        per_image = (len(network.classes),) if network.multi_label else ()
        self.labels = torch.zeros(images, *per_image, dtype=torch.int64)
        self.seen = torch.zeros(images, dtype=torch.int64)
        #: The fits of the heads that have something to fit, by their place among the network's heads.
        self.fits: dict[int, HeadFit] = {}
        self.columns: list[int] = []  # where each head's vector begins in a row
        # About as many local features as asked for, from each image as many.
        data = TrainingSet(images, len(network.classes), -(-config.pca_vectors // images), self.device)
        width = 0
        for i, head in enumerate(network.each_head()):
            self.columns.append(width)
            width += head.out_features
            fit = None if stored else head.start_fit(data)
            if fit is not None:
                self.fits[i] = fit
        names = [network.map_names(head) for i, head in enumerate(network.each_head()) if i in self.fits]
        memory = memory_for_maps()
        self.maps = MapStore(folder / f"maps-{rank()}.bin", -(-images // world_size()), names, memory)
        self.plan = self._plan()
        check_type(config.features, network)
        if not stored:
            check_shared(folder)
        dim, kind = network.out_features, config.features
        alone = not (stored or keep or world_size() > 1)  # otherwise others read them, or have written them
        held = alone and images * row_bytes(dim, kind) <= memory // 2
        self.features = open_rows(folder / "features.bin", images, dim, kind, to_write=not stored, in_memory=held)
        if not self.fits and not stored:  # else the maps count, too, once their size is known
            on_rank_zero(lambda: self._check_space(0))

    def __repr__(self) -> str:
        return f"FrozenFit({int(self.seen.sum()):,} of {self.images:,} images seen): {self.network!r}"

    def _plan(self) -> Plan:
        """Choose the solver of the SVMs; all ranks together."""
        config, size = self.config, (self.images, self.network.out_features, len(self.network.classes))
        folds = config.folds if self.settled is None else 0
        costs = len(config.c_candidates) if config.c == "auto" else 1
        chosen = plan(config.solver, *size, folds, self.device, costs, self.cross)
        if rank() == 0:
            say(f"solver: {'primal' if chosen.primal else 'kernel'}. {chosen.why}", sys.stderr)
        return chosen

    @torch.no_grad()
    def observe(self, images: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Take in a batch.

        Args:
            images: ``(b, 3, H, W)`` on the network's device; not looked at where the features are stored.
            labels: ``(b,)`` or ``(b, classes)``, see :mod:`cxlp.utils.labels`.
            positions: ``(b,)`` each image's place among the n, no place twice.

        Raises:
            CxlpError: If the labels are not the network's, or a map holds NaN or infinity.
        """
        positions, labels = positions.cpu(), labels.cpu()
        check_labels(self.network, labels, positions)
        self.labels[positions] = labels
        self.seen[positions] += 1
        if len(images) == 0 or self.stored:
            return
        inputs = self.network.inputs(images)
        check_maps(self.network, inputs, positions)
        for i, head in enumerate(self.network.each_head()):
            if i in self.fits:
                self.fits[i].observe(inputs[i], positions)
            else:
                self.features.write(positions, self.network.encode(head, inputs[i]), self.columns[i])
        if not self.fits:
            return
        begins = not self.maps.positions
        self.maps.append([inputs[i] for i in self.fits], positions)
        if begins and rank() == 0:  # not on_rank_zero: another rank may have no image, and never come here
            self._check_space(self.maps.row_bytes)

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Solve; the network's weights are the solution afterwards.

        Returns:
            What was chosen and found: ``C``, ``logit_scale``, ``cv_accuracy`` (cross-validated on
            the training images) and the like; ``primal``: 1 where the primal solver was taken, with ``unsolved``,
            how many SVMs it has left unsolved.

        Raises:
            CxlpError: If images were left out, features are not finite, or a class has a single image where the
                cross-validation is needed.
        """
        all_sum(self.seen)
        all_sum(self.labels)
        if not bool((self.seen == 1).all()):
            raise CxlpError(
                f"the frozen fit needs each of the {self.images} training images once, it saw "
                f"{int((self.seen > 0).sum())}: run without limit_train_batches and fast_dev_run, and give a loader "
                "without drop_last whose sampler gives each image once"
            )
        check_absent(self.labels)
        if self.fits:
            for place, fit in enumerate(self.fits.values()):
                fit.solve(HeadMaps(self.maps, place, self.labels, self.device, self.times))
            with self.times.measure("pooling"):
                self._pool()
            self.maps.delete()  # before the barrier: rank 0 removes the folder once it is empty
        if not self.stored and (self.keep or world_size() > 1):  # nobody else reads them otherwise
            self.features.sync()
        barrier()
        self.features.reopen()  # a network disk shows what others wrote to those who open after them
        report = self._fit_classifier()
        barrier()
        self.close(self.keep)
        return report

    def close(self, keep: bool) -> None:
        """Close the stores; delete the maps and, unless they are to be kept, the features."""
        self.features.close()
        self.maps.delete()
        if rank() == 0 and not keep and not self.stored:
            self.features.path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _check_space(self, map_bytes: int) -> None:
        """Refuse what will not fit; the maps' size is known where the first images have come."""
        on_disk = max(0, map_bytes * self.images - self.maps.memory * world_size())
        if not self.features.in_memory:
            on_disk += self.features.row_bytes * self.images
        if on_disk:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_space(self.folder, on_disk)

    def _pool(self) -> None:
        """Encode this rank's kept maps into the shared store of features."""
        heads, total = list(self.network.each_head()), len(self.maps.positions)
        with bar("Pooling", total, hidden=not self.progress or rank() != 0) as progress:
            for positions, waiting in self.maps.batches(self.device):
                for i, maps in zip(self.fits, waiting, strict=True):
                    self.features.write(positions, self.network.encode(heads[i], maps), self.columns[i])
                progress.update(len(positions))

    def _fit_classifier(self) -> dict[str, float]:
        classifier, labels, times = self.network.classifier, self.labels, self.times
        assert classifier is not None
        folds = 0
        if self.settled is None:
            folds = count_folds(labels, self.network.classes, self.config, "model.cross_fit" if self.cross else "")
        targets = as_targets(labels, len(self.network.classes)).numpy()
        solver = make_solver(self.plan, self.features, targets, split(labels, folds), self.device, times, self.progress)
        with times.measure("SVM"):
            if self.settled is None:
                report = choose_cost_and_scale(solver, labels, self.config.c, self.config.c_candidates, folds)
            else:
                report = dict(zip(("C", "logit_scale"), self.settled, strict=True))
            c, scale = report["C"], report["logit_scale"]
            # The scale is part of the weights, not a factor behind them: a factor s would multiply the steps of
            # gradient descent by s^2, and no learning rate would suit two data sets.
            if self.cross and folds > 1:
                self.fold_classifiers = solver.fold_classifiers(c).scaled(scale)
            weights, intercepts = solver.weights(c)
            classifier.weight.copy_(from_rank_zero(scale * weights))
            classifier.bias.copy_(from_rank_zero(scale * intercepts))
        return {**report, "primal": float(self.plan.primal), **tell_unsolved(solver)}
