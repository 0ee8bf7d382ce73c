"""A checkpoint at work on new images: as an object in Python, and as a stream for ``python -m cxlp predict``."""

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cxlp.backbones.inputs import check_images
from cxlp.data.decode import Pixels, as_pixels, read_image
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.deploy.reading import Batch, batches, collate, read_batches
from cxlp.models.checkpoint import network_of, read_checkpoint
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError

#: A file, or a picture itself: Pillow's, or ``(H, W, 3)`` uint8, RGB.
Picture = str | os.PathLike[str] | Image.Image | Pixels
#: What the network computes in: float32, or bfloat16 by autocast.
Precision = Literal["32", "bf16"]


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        path: As it was given; empty where the picture itself was.
        classes: The most probable ones, best first; none where the file could not be read.
        probabilities: Theirs. With one label per image they are a softmax's, and those of all classes sum to 1;
            with several, each class has its own sigmoid.
        error: Why the file could not be read; empty where it could.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


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
        Prediction(path='', classes=('gull', 'tern'), probabilities=(0.25, 0.25), error='')
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

    def picture(self, image: Picture) -> Tensor:
        """Make the network's input ``(3, T, T)`` uint8 of a file or a picture, as in the test.

        A file is decoded at reduced size where that is enough, see :func:`~cxlp.data.decode.read_image`: photos
        that are opened elsewhere and given as pictures differ from it by 2 of 255 in the mean.

        Raises:
            CxlpError: If it cannot be decoded, or an array is not ``(H, W, 3)`` uint8.
        """
        if isinstance(image, Image.Image):
            pixels = as_pixels(image)
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise CxlpError(f"the picture is {image.dtype} of shape {image.shape}: give (H, W, 3) uint8, RGB")
            pixels = np.ascontiguousarray(image)
        else:
            pixels = read_image(Path(image), None, self.transform.needed(None))
        return self.transform(pixels, None)

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

    def embed(self, images: Picture | Iterable[Picture], batch_size: int = 32) -> NDArray[np.float32]:
        """Make vectors of images, to compare them by: for retrieval, clustering, a classifier of your own.

        Args:
            images: As for :meth:`predict`.
            batch_size: Images that pass through the network together.

        Returns:
            ``(n, D)`` for several images, ``(D,)`` for one.

        Raises:
            CxlpError: If an image cannot be read.
        """
        if batch_size < 1:
            raise CxlpError(f"batch_size is {batch_size}: 1 or more")
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            return cast(NDArray[np.float32], self.embed([images])[0])
        found = np.empty((0, self.network.out_features), np.float32)
        parts = [self.features(torch.stack([*map(self.picture, batch)])) for batch in batches(images, batch_size)]
        return torch.cat(parts).numpy() if parts else found

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is an Iterable, too: a path all the same
        self, images: Picture, top: int = ..., batch_size: int = ...
    ) -> Prediction: ...
    @overload
    def predict(self, images: Iterable[Picture], top: int = ..., batch_size: int = ...) -> list[Prediction]: ...
    def predict(
        self, images: Picture | Iterable[Picture], top: int = 5, batch_size: int = 32
    ) -> Prediction | list[Prediction]:
        """Name the most probable classes.

        Args:
            images: A file, a picture of Pillow's, an ``(H, W, 3)`` uint8 array in RGB; or any number of them.
            top: How many classes; at most all are named.
            batch_size: Images that pass through the network together.

        Returns:
            A prediction, or a list of them in the order given.

        Raises:
            CxlpError: If an image cannot be read (:meth:`stream` goes on).
        """
        if top < 1 or batch_size < 1:
            raise CxlpError(f"top is {top}, batch_size {batch_size}: 1 or more")
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            return self.predict([images], top)[0]
        found: list[Prediction] = []
        for batch in batches(images, batch_size):
            names = [os.fspath(image) if isinstance(image, str | os.PathLike) else "" for image in batch]
            found.extend(self._judge(collate(list(zip(names, map(self.picture, batch), strict=True))), top))
        return found

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

    def _judge(self, batch: "Batch", top: int) -> Iterator[Prediction]:
        errors, pictures = batch
        rows = iter(self.probabilities(pictures).tolist() if len(pictures) else ())
        for path, error in errors:
            if error:
                yield Prediction(path, error=error)
                continue
            row = next(rows)
            best = sorted(range(len(row)), key=lambda k: -row[k])[:top]  # ties: in the order of the classes
            yield Prediction(path, tuple(self.classes[k] for k in best), tuple(row[k] for k in best))


def load(
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: Precision = "32",
    backbone: nn.Module | None = None,
) -> Predictor:
    """Make a predictor of a checkpoint of either mode; nothing else is needed.

    Args:
        checkpoint: A file that a run wrote, or the folder of a run, whose tested checkpoint is meant.
        device: See :meth:`Predictor.to`.
        precision: ``32`` or ``bf16`` (autocast).
        backbone: See :func:`~cxlp.models.checkpoint.load_network`, which says, too, what is imported: load only
            checkpoints that you trust.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp, or the device cannot be used.
    """
    saved = read_checkpoint(os.fspath(checkpoint))
    # A checkpoint of a plain Trainer does not say how its pictures were made.
    image = saved["cxlp"].get("image", {"aspect": "warp"})
    if not isinstance(image, dict) or image.get("aspect") not in get_args(Aspect):
        raise CxlpError(f"{checkpoint} is broken: it does not say how its run made pictures square")
    network = network_of(saved, backbone, str(checkpoint))
    given = image["aspect"], precision, image.get("boxes", False), image.get("transform", ())
    return Predictor(network, *given).to(device)
