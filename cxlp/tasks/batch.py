"""A common form of the batches of any loader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class Batch:
    """Images and labels of a loader.

    Attributes:
        images: Images ``(B, 3, H, W)``, or stored features ``(B, D)``.
        labels: ``(B,)`` class indices, or ``(B, K)`` with 1 (present), -1 (absent) and 0 (unspecified).
        index: ``(B,)``, the position of each image in its data set, or ``None`` if the loader does not yield it.
        new: ``(B,)``, False for repeats, which give all ranks the same number of images.
        stored: Whether ``images`` are stored features.
    """

    images: Tensor
    labels: Tensor
    index: Tensor | None
    new: Tensor
    stored: bool = False


def read_batch(batch: Any) -> Batch:  # noqa: ANN401 (whatever a loader yields)
    """Read a pair ``(images, labels)``, or a dictionary of :class:`~cxlp.data.datamodule.ImageDataModule`.

    Raises:
        CxlpError: If the batch is neither.
    """

    def all_new(labels: Tensor) -> Tensor:
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)

    if isinstance(batch, Mapping) and "label" in batch and ("image" in batch or "features" in batch):
        stored = "features" in batch
        labels = batch["label"]
        new = ~batch["repeat"] if "repeat" in batch else all_new(labels)
        return Batch(batch["features" if stored else "image"], labels, batch.get("index"), new, stored)
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        return Batch(images, labels, None, all_new(labels))
    raise CxlpError(
        f"the loader yields {_described(batch)}: expected pairs (images, labels) of tensors, or dictionaries with "
        "'image' and 'label'"
    )


def read_images(batch: Any) -> Tensor:  # noqa: ANN401 (whatever a loader yields)
    """Return the images of a batch of images alone, or of a batch as in :func:`read_batch`.

    Raises:
        CxlpError: If the batch is neither.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Sequence) and len(batch) == 1 and isinstance(batch[0], Tensor):
        return batch[0]
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
        image: Tensor = batch["image"]
        return image
    return read_batch(batch).images


def _described(batch: Any) -> str:  # noqa: ANN401 (whatever a loader yields)
    if isinstance(batch, Mapping):
        return f"a dictionary with {', '.join(map(repr, batch))}"
    if isinstance(batch, Sequence):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
    return f"a {type(batch).__name__}"
