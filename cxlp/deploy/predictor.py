"""Prediction, features and explanations for new images, with a fitted network."""

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from numbers import Integral
from textwrap import indent
from typing import Any, Literal, Self, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxlp.backbones.inputs import check_images
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.deploy.explained import Explained, Explanations
from cxlp.deploy.pictures import Picture, Pictures, is_single, iterate_pictures, name_of, prepared
from cxlp.deploy.prediction import Prediction, Predictions
from cxlp.deploy.reading import Batch, batches, read_batches
from cxlp.explain.attribution import explain
from cxlp.models.classes import first_names
from cxlp.models.network import Network
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.progress import bar, is_watched
from cxlp.utils.spelling import shown_names

#: Precision of the network: float32, or bfloat16 by autocast.
Precision = Literal["32", "bf16"]


class Predictor:
    """A fitted network with the image preprocessing that its run used for the test.

    Args:
        network: The network. A network without classes can only compute features.
        aspect: How images are made square, see :class:`~cxlp.data.datamodule.ImageDataModule`.
        precision: ``32`` or ``bf16`` (autocast).
        boxes: Whether the network was fitted to images that were cropped to bounding boxes.
        transform: Transforms that are applied to images before that, see the same class.

    Attributes:
        boxes: Whether the network expects images that are cropped to the object. The predictor does not crop.
        network: The network, in evaluation mode. Its backbone is held for the lifetime of the predictor, see
            :meth:`~cxlp.backbones.backbone.Backbone.hold`.
        classes: Names of the classes, in the order of :meth:`probabilities`.
        multi_label: Whether an image can have several classes.
        transform: The preprocessing, which converts an image to ``(3, T, T)``.
        device: Device of the network.

    Raises:
        CxlpError: If the precision is unknown.

    Example:
        >>> from cxlp.backbones.backbone import Backbone
        >>> from cxlp.heads import CrossLayerPooling
        >>> small = Backbone("timm/test_resnet", ("layer3.0.conv2", "layer3"), weights=None, image_size=32)
        >>> network = Network(small, CrossLayerPooling(pca_dim=4), ["gull", "tern", "wren", "crow"])
        >>> model = Predictor(network)  # or: load("runs/NAME/checkpoints/best.ckpt")
        >>> model.predict(np.zeros((48, 64, 3), np.uint8), top=2)  # not trained yet
        Prediction('': gull 25.00%, tern 25.00%)
    """

    def __init__(
        self,
        network: Network,
        aspect: Aspect = "warp",
        precision: Precision = "32",
        boxes: bool = False,
        transform: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if precision not in ("32", "bf16"):
            raise CxlpError(f"precision is {precision!r}; valid: 32, bf16")
        self.network = network.eval()
        network.backbone.hold()
        weakref.finalize(self, network.backbone.release)
        self.classes, self.multi_label = network.classes, network.multi_label
        self.transform = Transform(network.test_size, aspect, AugmentConfig(), transform)
        self.precision, self.boxes = precision, boxes
        self.device = network.backbone.mean.device

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto``: a GPU if one is available, otherwise the CPU.

        Raises:
            CxlpError: If the device cannot be used.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            self.network.to(self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA raises AssertionError
            raise CxlpError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
        return self

    def check_classes(self) -> None:
        """Check that the network has classes.

        Raises:
            CxlpError: If the network has no classes.
        """
        if self.network.classifier is None:
            raise CxlpError("the network has no classes and can only compute features: use embed, or fit the network")

    def __repr__(self) -> str:
        several, to = ", several per image" * self.multi_label, self.transform
        return (
            f"Predictor of {len(self.classes)} classes{several} ({first_names(self.classes)})\n"
            f"{indent(repr(self.network), '  ')}\n"
            f"  images of {to.size} x {to.size} pixels ({to.aspect}), on {self.device}, precision {self.precision}"
        )

    def picture(self, image: Picture) -> Tensor:
        """Return the network's input ``(3, T, T)`` uint8 for an image, preprocessed as in the test.

        Files are decoded at reduced size if that is sufficient, see :func:`~cxlp.data.decode.read_image`. The input
        differs by a mean of 2 of 255 if a photo is opened by other means and passed as an image object.

        Raises:
            CxlpError: If the image cannot be decoded, or is not a :data:`~cxlp.deploy.pictures.Picture`.
        """
        return prepared(image, self.transform)[0]

    @torch.inference_mode()
    def probabilities(self, pictures: Tensor) -> Tensor:
        """Compute the probabilities of all classes.

        Args:
            pictures: ``(B, 3, T, T)``, RGB, uint8 in 0..255 or floating point in 0..1, on any device.

        Returns:
            ``(B, K)`` float32 on the CPU, in the order of :attr:`classes`.

        Raises:
            CxlpError: If floating point values are outside 0..1, or the network has no classes.
        """
        self.check_classes()
        check_images(pictures, self.network.test_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scores = self.network.score(pictures.to(self.device)).float()
        return (scores.sigmoid() if self.multi_label else scores.softmax(dim=1)).cpu()

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """Compute the representation of images, the classifier's input: the mean over test views.

        Args:
            pictures: See :meth:`probabilities`.

        Returns:
            ``(B, D)`` float32 on the CPU.
        """
        check_images(pictures, self.network.test_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network.test_features(pictures.to(self.device)).float().cpu()

    def embed(self, images: Pictures, batch_size: int = 32) -> NDArray[np.float32]:
        """Compute the feature vectors of images, for retrieval, clustering or your own classifier.

        Args:
            images: See :meth:`predict`. Folders are read in the order of :func:`~cxlp.deploy.image_paths.list_images`.
            batch_size: Batch size of the network.

        Returns:
            ``(n, D)`` for several images, ``(D,)`` for one.

        Raises:
            CxlpError: If an image cannot be read.
        """
        parts = [self.features(torch.stack(inputs)) for _, inputs, _ in self._read(images, batch_size)]
        found = torch.cat(parts).numpy() if parts else np.empty((0, self.network.out_features), np.float32)
        return cast(NDArray[np.float32], found[0] if is_single(images) else found)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is an Iterable, but means a path
        self, images: Picture, top: int = ..., batch_size: int = ...
    ) -> Prediction: ...
    @overload
    def predict(self, images: Iterable[Picture], top: int = ..., batch_size: int = ...) -> Predictions: ...
    def predict(self, images: Pictures, top: int = 5, batch_size: int = 32) -> Prediction | Predictions:
        """Predict the most probable classes of images.

        Args:
            images: A path, a Pillow image, an array ``(H, W, 3)`` or a tensor ``(3, H, W)`` of any size, RGB, uint8 in
                0..255 or floating point in 0..1. Or several images: a folder, a quoted pattern, an array or tensor with
                a batch dimension, or any iterable of these.
            top: Number of classes per image, limited to the number of all classes.
            batch_size: Batch size of the network.

        Returns:
            A prediction for a single image, otherwise a list of predictions in the order of the images.

        Raises:
            CxlpError: If an image cannot be read (:meth:`stream` continues instead).
        """
        if not isinstance(top, Integral) or top < 1:
            raise CxlpError(f"top is {top!r}: pass an integer, 1 or more")
        self.check_classes()
        found = Predictions()
        for batch, inputs, _ in self._read(images, batch_size):
            rows = self.probabilities(torch.stack(inputs)).tolist()
            found += [self._prediction(name_of(image), row, top, image) for image, row in zip(batch, rows, strict=True)]
        return found[0] if is_single(images) else found

    @overload
    def explain(  # type: ignore[overload-overlap]  # as above
        self, images: Picture, target: str | None = ..., against: str | None = ..., channels: int = ...
    ) -> Explained: ...
    @overload
    def explain(
        self, images: Iterable[Picture], target: str | None = ..., against: str | None = ..., channels: int = ...
    ) -> Explanations: ...
    def explain(
        self, images: Pictures, target: str | None = None, against: str | None = None, channels: int = 8
    ) -> Explained | Explanations:
        """Decompose the score of a class exactly over the places of an image and the pooling channels.

        The explanation covers the whole image, without test views. It takes about a megabyte per image.

        Args:
            images: See :meth:`predict`.
            target: Name of the class; ``None``: the most probable class of each image.
            against: Name of a class whose score is subtracted.
            channels: Number of pooling channels that are shown, those with the largest absolute shares.

        Returns:
            An explanation for a single image, otherwise a list of explanations.

        Raises:
            CxlpError: If an image cannot be read, there is no such class, or a head's scores are not sums over places.
        """
        self.check_classes()
        chosen, other = (None if name is None else self.index(name) for name in (target, against))
        if chosen is not None and chosen == other:
            raise CxlpError(f"target and against are both {target!r}: name two different classes")
        found = Explanations()
        for batch, inputs, proportions in self._read(images, 16):
            explained = explain(self.network, torch.stack(inputs).to(self.device), chosen, other)
            for image, made, proportion, each in zip(batch, inputs, proportions, explained, strict=True):
                found.append(Explained(name_of(image), made, proportion, each, self.classes, channels))
        return found[0] if is_single(images) else found

    def index(self, name: str) -> int:
        """Return the index of a class, given its name in :attr:`classes` or its readable name in figures.

        Raises:
            CxlpError: If there is no such class. The message suggests similar names.
        """
        for names in (self.classes, shown_names(self.classes)):
            if name in names:
                return names.index(name)
        raise CxlpError(f"the network has no class {name!r}. {did_you_mean(name, self.classes)}")

    def _read(
        self, images: Pictures, batch_size: int
    ) -> Iterator[tuple[list[Picture], tuple[Tensor, ...], tuple[float, ...]]]:
        """Iterate over batches: the given images, the network's inputs, and heights divided by widths."""
        if batch_size < 1:
            raise CxlpError(f"batch_size is {batch_size}: it must be 1 or more")
        total = len(images) if isinstance(images, list | np.ndarray | Tensor) else None
        hidden = is_single(images) or not is_watched(sys.stderr)
        with ThreadPoolExecutor(usable_cores()) as pool, bar("Images", total, hidden=hidden) as progress:
            for batch in batches(iterate_pictures(images), batch_size):
                inputs, proportions = zip(*pool.map(prepared, batch, repeat(self.transform)), strict=True)
                yield batch, inputs, proportions
                progress.update(len(batch))

    def stream(
        self, paths: Iterable[str], top: int = 5, batch_size: int = 32, workers: int = 0
    ) -> Iterator[Prediction]:
        """Predict lazily for any number of files, and continue after files that cannot be read.

        Args:
            paths: Paths of files. They are read a few batches ahead, never all at once.
            top: Number of classes per image, limited to the number of all classes.
            batch_size: Batch size of the network.
            workers: Number of worker processes for decoding; 0: decode in this process.

        Yields:
            A prediction for each path, in order. Its ``error`` is set if the file could not be read.
        """
        for batch in read_batches(paths, self.transform, batch_size, workers):
            yield from self._predict_batch(batch, top)

    def _predict_batch(self, batch: Batch, top: int) -> Iterator[Prediction]:
        errors, pictures = batch
        rows = iter(self.probabilities(pictures).tolist() if len(pictures) else ())
        for path, error in errors:
            yield Prediction(path, error=error) if error else self._prediction(path, next(rows), top, path)

    def _prediction(self, path: str, row: Sequence[float], top: int, image: Picture) -> Prediction:
        best = sorted(range(len(row)), key=lambda k: -row[k])[:top]  # ties keep the order of the classes
        return Prediction(path, tuple(self.classes[k] for k in best), tuple(row[k] for k in best), image=image)
