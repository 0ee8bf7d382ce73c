"""The frozen fit: projection and classifier are fitted as in the paper, without gradients."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from cxlp.frozen.checks import check_absent, check_labels, check_maps, check_type
from cxlp.frozen.classifier import choose_cost_and_scale, quality, split
from cxlp.frozen.config import FrozenConfig, count_folds
from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.gram import score_rows
from cxlp.frozen.maps import HeadMaps, MapStore, memory_for_maps
from cxlp.frozen.solvers import Plan, make_solver, plan, warn_if_unsolved
from cxlp.frozen.store import check_shared, check_space, open_rows, row_bytes
from cxlp.heads.fitting import HeadFit, TrainingSet
from cxlp.models.network import Network
from cxlp.utils.distributed import all_sum, barrier, from_rank_zero, on_rank_zero, rank, world_size
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets
from cxlp.utils.profiling import PhaseTimes
from cxlp.utils.progress import bar, say


class FrozenFit:
    """Fits a network's heads (PCA, codebooks) and its classifier (SVMs) in one pass over the training images.

    Each image is decoded and passes through the backbone once. :meth:`observe` passes the maps to the fits of the heads
    and stores them: those of the first images in memory, the others on disk (maps are smaller than the vectors pooled
    from them). :meth:`finish` solves the fits of the heads, encodes the stored maps, and solves the SVMs. A head
    without a fit encodes its maps immediately. The pooled features are stored on disk, or in memory if they are small
    and no other process or later run needs them. Besides these, memory holds one batch, one block of features, the
    d x d scatter matrix, and the memory of the SVM solver, see :mod:`cxlp.frozen.solvers`.

    With several ranks, each rank observes its share of the images. All call :meth:`finish` together, and the result is
    the same on each rank.

    Args:
        network: A network with classes, on the device for the computation.
        config: Options of the frozen fit.
        images: n, the number of training images over all ranks.
        folder: Folder for features and maps during the fit, the same for all ranks.
        times: Collects the time of each phase.
        progress: Whether rank 0 shows progress bars.
        stored: Whether ``folder`` already holds the features and the network's heads are fitted, so that only the SVMs
            remain to be fitted.
        keep: Whether to keep the features in ``folder``.
        cross: Whether to return the classifiers of the cross-validation as :attr:`fold_classifiers` after
            :meth:`finish`.
        settled: C and the logit scale, if they are known; then there is no cross-validation. Cross-validation would be
            biased on features that were trained with the same labels.
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
        #: The fits of the heads that need one, by index among the network's heads.
        self.fits: dict[int, HeadFit] = {}
        self.columns: list[int] = []  # first column of each head's vector in a row
        # The same number of local features from each image, rounded up.
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
        alone = not (stored or keep or world_size() > 1)  # no other process or run reads or wrote the features
        held = alone and images * row_bytes(dim, kind) <= memory // 2
        self.features = open_rows(folder / "features.bin", images, dim, kind, to_write=not stored, in_memory=held)
        if not self.fits and not stored:  # with fits, the maps need space, too: checked once their size is known
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
        """Process a batch of images.

        Args:
            images: ``(b, 3, H, W)`` on the network's device; ignored if the features are already stored.
            labels: ``(b,)`` or ``(b, classes)``, see :mod:`cxlp.utils.labels`.
            positions: ``(b,)``, each image's position among the n images, without repeats.

        Raises:
            CxlpError: If the labels do not suit the network, or a map contains NaN or infinity.
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
        is_first = not self.maps.positions
        self.maps.append([inputs[i] for i in self.fits], positions)
        if is_first and rank() == 0:  # not on_rank_zero: a rank without images would not get here
            self._check_space(self.maps.row_bytes)

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Solve the fits, and write the solution into the network's weights.

        Returns:
            ``C``, ``logit_scale``, and ``cv_accuracy`` or ``cv_mAP`` from the cross-validation on the training images;
            with a cross-validation also ``train_accuracy`` or ``train_mAP``, on the images the SVMs were fitted to;
            ``primal``, 1 with the primal solver, otherwise 0; with it also ``unsolved``, the number of SVMs that
            have not reached the tolerance.

        Raises:
            CxlpError: If images were left out, features are not finite, or a class has a single image and a
                cross-validation is needed.
        """
        all_sum(self.seen)
        all_sum(self.labels)
        if not bool((self.seen == 1).all()):
            raise CxlpError(
                f"the frozen fit needs each of the {self.images} training images once, but it saw "
                f"{int((self.seen > 0).sum())}: run without limit_train_batches and fast_dev_run, and pass a loader "
                "without drop_last whose sampler yields each image once"
            )
        check_absent(self.labels)
        if self.fits:
            for place, fit in enumerate(self.fits.values()):
                fit.solve(HeadMaps(self.maps, place, self.labels, self.device, self.times))
            with self.times.measure("pooling"):
                self._pool()
            self.maps.delete()  # before the barrier, because rank 0 then removes the folder if it is empty
        if not self.stored and (self.keep or world_size() > 1):  # other processes or runs will read the features
            self.features.sync()
        barrier()
        self.features.reopen()  # on a network disk, only files opened after the writes show them
        report = self._fit_classifier()
        barrier()
        self.close(self.keep)
        return report

    def close(self, keep: bool) -> None:
        """Close the stores and delete the maps; also delete the features unless ``keep`` is true."""
        self.features.close()
        self.maps.delete()
        if rank() == 0 and not keep and not self.stored:
            self.features.path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _check_space(self, map_bytes: int) -> None:
        """Check that features and maps fit on the disk; ``map_bytes`` is the size of one image's maps."""
        on_disk = max(0, map_bytes * self.images - self.maps.memory * world_size())
        if not self.features.in_memory:
            on_disk += self.features.row_bytes * self.images
        if on_disk:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_space(self.folder, on_disk)

    def _pool(self) -> None:
        """Encode this rank's stored maps into the shared store of features."""
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
            # Multiply the weights by the scale. A separate factor s after the classifier would multiply the steps of
            # gradient descent by s^2, and the learning rate would depend on the data set.
            if self.cross and folds > 1:
                self.fold_classifiers = solver.fold_classifiers(c).scaled(scale)
            weights, intercepts = solver.weights(c)
            if folds > 1:
                scores = score_rows(self.features, weights, intercepts, self.device).numpy()
                report["train_accuracy" if labels.ndim == 1 else "train_mAP"] = quality(scores, labels)
            classifier.weight.copy_(from_rank_zero(scale * weights))
            classifier.bias.copy_(from_rank_zero(scale * intercepts))
        return {**report, "primal": float(self.plan.primal), **warn_if_unsolved(solver)}
