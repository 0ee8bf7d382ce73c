"""A checkpoint at work on new images: as an object in Python, and as a stream for ``python -m cxlp predict``."""

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
from cxlp.deploy.pictures import Picture, Pictures, is_one, name_of, one_by_one, prepared
from cxlp.deploy.prediction import Prediction, Predictions
from cxlp.deploy.reading import Batch, batches, read_batches
from cxlp.explain.attribution import explain
from cxlp.models.classes import some
from cxlp.models.network import Network
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.progress import bar, is_watched
from cxlp.utils.spelling import shown_names

#: What the network computes in: float32, or bfloat16 by autocast.
Precision = Literal["32", "bf16"]


class Predictor:
    """A fitted network together with what makes its input of a file, as in the test of its run.

    Args:
        network: Without classes, it gives features only.
        aspect: How pictures become square, see :class:`~cxlp.data.datamodule.ImageDataModule`.
        precision: ``32`` or ``bf16`` (autocast).
        boxes: Whether its run cropped images to boxes.
        transform: How pictures are changed before that, see there.

    Attributes:
        boxes: Whether it expects images that are cropped to the object, as its run's were: files are taken whole.
        network: In evaluation mode; its backbone is held as long as the predictor lives, see
            :meth:`~cxlp.backbones.backbone.Backbone.hold`.
        classes: Names, in the order of :meth:`probabilities`.
        multi_label: Whether an image may show several classes.
        transform: Makes ``(3, T, T)`` of a picture.
        device: Where the network is.

    Raises:
        CxlpError: If the precision is unknown.

    Example:
        >>> from cxlp.backbones.backbone import Backbone
        >>> from cxlp.heads import CrossLayerPooling
        >>> small = Backbone("timm/test_resnet", ("layer3.0.conv2", "layer3"), weights=None, image_size=32)
        >>> network = Network(small, CrossLayerPooling(pca_dim=4), ["gull", "tern", "wren", "crow"])
        >>> model = Predictor(network)  # or: load("runs/NAME/checkpoints/best.ckpt")
        >>> model.predict(np.zeros((48, 64, 3), np.uint8), top=2)  # not trained yet: no opinion
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
        """Move the network.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto``: a GPU where there is one.

        Raises:
            CxlpError: If there is no such device.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            self.network.to(self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
            raise CxlpError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
        return self

    def check_classes(self) -> None:
        """Refuse to be asked for classes.

        Raises:
            CxlpError: If the network has none.
        """
        if self.network.classifier is None:
            raise CxlpError("the network has no classes: there is nothing to predict (embed gives its features)")

    def __repr__(self) -> str:
        several, to = " of which an image may show several" * self.multi_label, self.transform
        return (
            f"Predictor of {len(self.classes)} classes{several} ({some(self.classes)})\n"
            f"{indent(repr(self.network), '  ')}\n"
            f"  images of {to.size} x {to.size} pixels ({to.aspect}), on {self.device}, precision {self.precision}"
        )

    def picture(self, image: Picture) -> Tensor:
        """Make the network's input ``(3, T, T)`` uint8 of a file or a picture, as in the test.

        A file is decoded at reduced size where that is enough, see :func:`~cxlp.data.decode.read_image`: photos
        that are opened elsewhere and given as pictures differ from it by 2 of 255 in the mean.

        Raises:
            CxlpError: If it cannot be decoded, or is no picture, see :data:`~cxlp.deploy.pictures.Picture`.
        """
        return prepared(image, self.transform)[0]

    @torch.inference_mode()
    def probabilities(self, pictures: Tensor) -> Tensor:
        """Compute probabilities of all classes.

        Args:
            pictures: ``(B, 3, T, T)``, RGB, uint8 of 0..255 or floating point of 0..1, on any device.

        Returns:
            ``(B, K)`` float32 on the CPU, in the order of :attr:`classes`.

        Raises:
            CxlpError: If floating point pictures go beyond 0..1, or the network has no classes.
        """
        self.check_classes()
        check_images(pictures, self.network.test_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scores = self.network.score(pictures.to(self.device)).float()
        return (scores.sigmoid() if self.multi_label else scores.softmax(dim=1)).cpu()

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """Compute the representation of images, which the classifier is given: the mean of their test views'.

        Args:
            pictures: As for :meth:`probabilities`.

        Returns:
            ``(B, D)`` float32 on the CPU.
        """
        check_images(pictures, self.network.test_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network.test_features(pictures.to(self.device)).float().cpu()

    def embed(self, images: Pictures, batch_size: int = 32) -> NDArray[np.float32]:
        """Make vectors of images, to compare them by: for retrieval, clustering, a classifier of your own.

        Args:
            images: As for :meth:`predict`; of a folder, in the order of :func:`~cxlp.deploy.image_paths.list_images`.
            batch_size: Images that pass through the network together.

        Returns:
            ``(n, D)`` for several images, ``(D,)`` for one.

        Raises:
            CxlpError: If an image cannot be read.
        """
        parts = [self.features(torch.stack(inputs)) for _, inputs, _ in self._read(images, batch_size)]
        found = torch.cat(parts).numpy() if parts else np.empty((0, self.network.out_features), np.float32)
        return cast(NDArray[np.float32], found[0] if is_one(images) else found)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is an Iterable, too: a path all the same
        self, images: Picture, top: int = ..., batch_size: int = ...
    ) -> Prediction: ...
    @overload
    def predict(self, images: Iterable[Picture], top: int = ..., batch_size: int = ...) -> Predictions: ...
    def predict(self, images: Pictures, top: int = 5, batch_size: int = 32) -> Prediction | Predictions:
        """Name the most probable classes.

        Args:
            images: A file, a picture of Pillow's, an array ``(H, W, 3)``, a tensor ``(3, H, W)``, of any size (RGB,
                uint8 of 0..255 or floating point of 0..1); or several: a folder, a quoted pattern, a batch with a
                dimension more, or any iterable of such.
            top: How many classes; at most all are named.
            batch_size: Images that pass through the network together.

        Returns:
            A prediction of one image; else a list of them, in the order given.

        Raises:
            CxlpError: If an image cannot be read (:meth:`stream` goes on).
        """
        if not isinstance(top, Integral) or top < 1:
            raise CxlpError(f"top is {top!r}: a whole number, 1 or more")
        self.check_classes()
        found = Predictions()
        for batch, inputs, _ in self._read(images, batch_size):
            rows = self.probabilities(torch.stack(inputs)).tolist()
            found += [self._named(name_of(image), row, top, image) for image, row in zip(batch, rows, strict=True)]
        return found[0] if is_one(images) else found

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
        """Split the score of a class over the places of an image and the pooling channels, exactly.

        Explained is the whole image, without test views. What comes back holds about a megabyte per image.

        Args:
            images: As for :meth:`predict`.
            target: The class; ``None``: each image's most probable one.
            against: A class whose score is subtracted.
            channels: How many of the strongest channels are shown.

        Returns:
            An explanation of one image; else a list of them.

        Raises:
            CxlpError: If an image cannot be read, there is no such class, or a head's scores are no sums over places.
        """
        self.check_classes()
        chosen, other = (None if name is None else self.index(name) for name in (target, against))
        if chosen is not None and chosen == other:
            raise CxlpError(f"target and against are both {target!r}: give two classes")
        found = Explanations()
        for batch, inputs, proportions in self._read(images, 16):
            explained = explain(self.network, torch.stack(inputs).to(self.device), chosen, other)
            for image, made, proportion, each in zip(batch, inputs, proportions, explained, strict=True):
                found.append(Explained(name_of(image), made, proportion, each, self.classes, channels))
        return found[0] if is_one(images) else found

    def index(self, name: str) -> int:
        """The place of a class among :attr:`classes`, by its name there or as pictures show it, `Laysan Albatross`.

        Raises:
            CxlpError: If there is none of that name; names those that are close.
        """
        for names in (self.classes, shown_names(self.classes)):
            if name in names:
                return names.index(name)
        raise CxlpError(f"the network knows no class {name!r}. {did_you_mean(name, self.classes)}")

    def _read(
        self, images: Pictures, batch_size: int
    ) -> Iterator[tuple[list[Picture], tuple[Tensor, ...], tuple[float, ...]]]:
        """Go through images batch by batch: what was given, the network's inputs, heights by widths."""
        if batch_size < 1:
            raise CxlpError(f"batch_size is {batch_size}: 1 or more")
        total = len(images) if isinstance(images, list | np.ndarray | Tensor) else None
        hidden = is_one(images) or not is_watched(sys.stderr)
        with ThreadPoolExecutor(usable_cores()) as pool, bar("Images", total, hidden=hidden) as progress:
            for batch in batches(one_by_one(images), batch_size):
                inputs, proportions = zip(*pool.map(prepared, batch, repeat(self.transform)), strict=True)
                yield batch, inputs, proportions
                progress.update(len(batch))

    def stream(
        self, paths: Iterable[str], top: int = 5, batch_size: int = 32, workers: int = 0
    ) -> Iterator[Prediction]:
        """Predict for any number of files, one batch after another; a file that cannot be read stops nothing.

        Args:
            paths: Taken a few batches ahead, never all at once.
            top: How many classes; at most all are named.
            batch_size: Images that pass through the network together.
            workers: Processes that decode; 0: this one.

        Yields:
            A prediction for each path, in order; with its ``error`` where the file could not be read.
        """
        for batch in read_batches(paths, self.transform, batch_size, workers):
            yield from self._judge(batch, top)

    def _judge(self, batch: Batch, top: int) -> Iterator[Prediction]:
        errors, pictures = batch
        rows = iter(self.probabilities(pictures).tolist() if len(pictures) else ())
        for path, error in errors:
            yield Prediction(path, error=error) if error else self._named(path, next(rows), top, path)

    def _named(self, path: str, row: Sequence[float], top: int, image: Picture) -> Prediction:
        best = sorted(range(len(row)), key=lambda k: -row[k])[:top]  # ties: in the order of the classes
        return Prediction(path, tuple(self.classes[k] for k in best), tuple(row[k] for k in best), image=image)
