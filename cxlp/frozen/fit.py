"""The frozen mode: fit projection and classifier as in the paper, without gradients."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cxlp.distributed import all_sum, barrier, from_rank_zero, rank, usable_cores, world_size
from cxlp.errors import CxlpError
from cxlp.frozen.gram import combine_rows, gram_matrix
from cxlp.frozen.moments import Moments
from cxlp.frozen.store import RowStore, check_shared, check_space
from cxlp.frozen.svm import choose_c, fit_logit_scale, held_out_scores, quality, solve
from cxlp.labels import as_targets, strata
from cxlp.network import Network
from cxlp.pooling import CrossLayerPooling, sub_arrays
from cxlp.timing import PhaseTimes


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
        keep_features: Leave the pooled training features on disk after the fit.
    """

    c: float | Literal["auto"] = 10.0
    c_candidates: Sequence[float] = (0.1, 1.0, 10.0, 100.0)
    folds: int = 5
    pca_vectors: int = 100_000
    keep_features: bool = False

    def __post_init__(self) -> None:
        costs = self.c_candidates if self.c == "auto" else [self.c]
        if not costs or not all(cost > 0 for cost in costs):
            key = "c_candidates" if self.c == "auto" else "c"
            raise CxlpError(f"model.frozen.{key} is {getattr(self, key)}: a cost C must be greater than 0")
        if self.folds < 2:
            raise CxlpError(f"model.frozen.folds is {self.folds}: cross-validation needs 2 or more")
        if self.pca_vectors < 1:
            raise CxlpError(f"model.frozen.pca_vectors is {self.pca_vectors}: it must be 1 or more")


class FrozenFit:
    """Fits a network's projection (PCA) and classifier (SVMs) to one pass over the training images.

    Each image is decoded and sent through the backbone once: :meth:`observe` feeds the PCA and
    keeps the two maps on disk (they are smaller than what is pooled from them); :meth:`finish`
    solves the PCA, pools the kept maps, and solves the SVMs. Memory holds one batch, one block of
    features, the d x d scatter and the n x n Gram matrix, whatever the number of features.

    With several ranks, each observes its share of the images and all call :meth:`finish` together;
    they end with the same weights.

    Args:
        network: With its classes set; on the device to work on.
        config: Options.
        images: n, the number of training images over all ranks.
        folder: Where features and maps are kept meanwhile; all ranks name the same one.
        times: Gets the time of each phase.
        progress: Whether rank 0 shows bars.
    """

    def __init__(
        self,
        network: Network,
        config: FrozenConfig,
        images: int,
        folder: Path,
        times: PhaseTimes,
        progress: bool = True,
    ) -> None:
        self.network, self.config, self.images, self.folder, self.times = network, config, images, folder, times
        self.progress = progress
        self.device = network.backbone.mean.device
        per_image = (len(network.classes),) if network.multi_label else ()
        self.labels = torch.zeros(images, *per_image, dtype=torch.int64)
        self.seen = torch.zeros(images, dtype=torch.int64)
        self.positions: list[int] = []  # of this rank's images, in the order of its map store
        self.map_shapes: list[tuple[int, int, int]] = []  # (h, w, channels)
        self.maps: RowStore | None = None
        self.moments: Moments | None = None
        if network.projection is not None:
            assert isinstance(network.pooling, CrossLayerPooling)
            self._check_pca(network.projection.out_channels)
            self.moments = Moments(network.pooling.local_dim, self.device)
        check_shared(folder)
        if self.moments is None:  # else the maps count, too, once their size is known
            self._check_space(0)
        self.features = RowStore(folder / "features.bin", images, network.pooling.out_features)

    @torch.no_grad()
    def observe(self, images: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Take in a batch.

        Args:
            images: ``(b, 3, H, W)`` on the network's device.
            labels: ``(b,)`` or ``(b, classes)``, see :mod:`cxlp.labels`.
            positions: ``(b,)`` each image's place among the n, no place twice.
        """
        if len(images) == 0:
            return
        maps = self.network.pooling_inputs(images)
        positions = positions.cpu()
        self.labels[positions] = labels.cpu()
        self.seen[positions] += 1
        if self.moments is None:
            self.features.write(positions, self.network.pooling(*maps))
            return
        self.moments.update(self._sample(maps[0], positions))
        if len(maps) == 2 and maps[0] is maps[1]:
            maps = maps[:1]
        if self.maps is None:
            self.maps = self._open_maps(maps)
        start = len(self.positions)
        rows = torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in maps], dim=1)  # (b, sum of h w c)
        self.maps.write(torch.arange(start, start + len(rows)), rows)
        self.positions += positions.tolist()

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Solve; the network's weights are the solution afterwards.

        Returns:
            What was chosen and found: ``C``, ``logit_scale``, ``cv_accuracy`` (cross-validated on
            the training images) and the like.

        Raises:
            CxlpError: If images were left out.
        """
        all_sum(self.seen)
        all_sum(self.labels)
        if not bool((self.seen == 1).all()):
            raise CxlpError(
                f"the frozen fit needs each of the {self.images} training images once, it saw "
                f"{int((self.seen > 0).sum())}: run without limit_train_batches and fast_dev_run"
            )
        if self.moments is not None:
            with self.times.measure("PCA"):
                self._fit_projection(self.moments)
            with self.times.measure("pooling"):
                self._pool()
            self._drop_maps()  # before the barrier: rank 0 removes the folder once it is empty
        self.features.sync()
        barrier()
        self.features.reopen()  # a network disk shows what others wrote to those who open after them
        with self.times.measure("Gram matrix"):
            gram = gram_matrix(self.features, self.device, progress=self.progress).numpy()
        with self.times.measure("SVM"):
            report = self._fit_classifier(gram)
        barrier()
        self.close(keep=self.config.keep_features)
        return report

    def close(self, keep: bool) -> None:
        """Close the stores; delete the maps and, unless they are to be kept, the features."""
        self.features.close()
        self._drop_maps()
        if rank() == 0 and not keep:
            self.features.path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _drop_maps(self) -> None:
        if self.maps is not None:
            self.maps.close()
            self.maps.path.unlink(missing_ok=True)
            self.maps = None

    def _open_maps(self, maps: Sequence[Tensor]) -> RowStore:
        self.map_shapes = [(m.shape[2], m.shape[3], m.shape[1]) for m in maps]
        size = sum(m[0].numel() for m in maps)
        share = -(-self.images // world_size())
        self._check_space(size * maps[0].dtype.itemsize)
        return RowStore(self.folder / f"maps-{rank()}.bin", share, size, maps[0].dtype)

    def _check_space(self, map_bytes: int) -> None:
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_space(self.folder, (map_bytes + 4 * self.network.pooling.out_features) * self.images)

    def _check_pca(self, axes: int) -> None:
        """Refuse what the PCA could only refuse after the pass."""
        per_image = min(self.network.local_features, -(-self.config.pca_vectors // self.images))
        if self.images * per_image <= axes:
            raise CxlpError(
                f"PCA to {axes} dimensions needs more than {axes} local features; {self.images} training images give "
                f"{per_image} each (of {self.network.local_features}): lower model.network.pooling.pca_dim"
            )

    def _sample(self, local: Tensor, positions: Tensor) -> Tensor:
        """Local features at random places of each image: ``(b * k, d)``; the places depend on its position only."""
        pooling = self.network.pooling
        assert isinstance(pooling, CrossLayerPooling)
        vectors = sub_arrays(local.float(), pooling.size, pooling.stride, pooling.padding)  # (b, N, d)
        wanted = -(-self.config.pca_vectors // self.images)
        if wanted < vectors.shape[1]:
            places = torch.stack(
                [
                    torch.randperm(vectors.shape[1], generator=torch.Generator().manual_seed(p))[:wanted]
                    for p in positions.tolist()
                ]
            )
            vectors = torch.take_along_dim(vectors, places.to(vectors.device).unsqueeze(2), dim=1)
        return vectors.flatten(0, 1)

    def _fit_projection(self, moments: Moments) -> None:
        projection = self.network.projection
        assert projection is not None and projection.bias is not None
        moments.merge_ranks()
        axes = moments.principal_axes(projection.out_channels)  # (p, d)
        projection.weight.copy_(axes.view_as(projection.weight))
        projection.bias.copy_(-(axes @ moments.mean))

    def _pool(self) -> None:
        """Pool this rank's kept maps into the shared store of features."""
        if self.maps is None:  # more ranks than images
            return
        step = 32
        steps = range(0, len(self.positions), step)
        for start in tqdm(steps, desc="Pooling", disable=not self.progress or rank() != 0, leave=False):
            stop = min(start + step, len(self.positions))
            rows = self.maps.read(start, stop).to(self.device)
            parts = torch.split(rows, [h * w * c for h, w, c in self.map_shapes], dim=1)
            maps = [
                part.view(-1, *shape).permute(0, 3, 1, 2)  # (b, c, h, w), channels last in memory
                for part, shape in zip(parts, self.map_shapes, strict=True)
            ]
            features = self.network.pooling(*(maps if len(maps) == 2 else maps * 2))
            self.features.write(torch.tensor(self.positions[start:stop]), features)

    def _fit_classifier(self, gram: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> dict[str, float]:
        classifier = self.network.classifier
        assert classifier is not None
        labels = self.labels
        targets = as_targets(labels, len(self.network.classes)).numpy()
        threads = max(1, usable_cores() // world_size())
        folds = min(self.config.folds, int((targets == 1).sum(axis=1).min()))
        groups = strata(labels, folds).numpy()
        name = "cv_mAP" if self.network.multi_label else "cv_accuracy"
        report: dict[str, float] = {}
        c = self.config.c
        if c == "auto":
            if folds < 2:
                raise CxlpError("C cannot be cross-validated: a class has a single training image; give model.frozen.c")
            c, found = choose_c(gram, targets, labels, self.config.c_candidates, folds, threads)
            report |= {f"{name}_C{candidate:g}": value for candidate, value in found.items()}
        report["C"] = c
        solution = solve(gram, targets, c, threads)
        scale = 1.0
        if folds < 2:
            warnings.warn("a class has a single training image: the scale of the logits stays 1", stacklevel=2)
        else:
            scores = held_out_scores(gram, targets, groups, c, folds, threads)
            report[name] = quality(scores, labels)
            scale = fit_logit_scale(scores, labels)
        report["logit_scale"] = scale
        # The scale is part of the weights, not a factor behind them: a factor s would multiply the steps of
        # gradient descent by s^2, and no learning rate would suit two data sets.
        weights = combine_rows(self.features, torch.from_numpy(scale * solution.coefficients), self.device)
        classifier.weight.copy_(from_rank_zero(weights))
        classifier.bias.copy_(from_rank_zero(torch.from_numpy(scale * solution.intercepts)))
        return report
