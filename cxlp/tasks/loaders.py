"""Helpers for loaders of any kind: which loader is used, and how many images it has."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cxlp.utils.distributed import all_sum, world_size
from cxlp.utils.errors import CxlpError


def count_images(loader: DataLoader[Any]) -> int:
    """Return the number of distinct images that one epoch yields on all ranks together."""
    sampler = sampler_of(loader)
    if hasattr(sampler, "num_replicas"):
        # Lightning's distributed sampler may wrap a sampler that leaves images out.
        chosen: Any = getattr(sampler, "dataset", loader.dataset)
        return len(chosen)
    # The sampler of a single process may leave images out, too.
    return len(sampler) if world_size() == 1 else len(loader.dataset)  # type: ignore[arg-type]


def sampler_of(loader: DataLoader[Any]) -> Any:  # noqa: ANN401 (of any kind)
    """Return the sampler that chooses the images; a batch sampler may wrap it."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def only_loader(loaders: Any) -> Any:  # noqa: ANN401 (Lightning's type)
    """Return the only one of the Trainer's loaders.

    Raises:
        CxlpError: If there are several loaders.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    given = loaders if isinstance(loaders, Sequence) else [loaders]
    if len(given) != 1:
        raise CxlpError(
            f"{len(given)} loaders were given to evaluate, but there is one set of metrics: pass one loader (of a "
            "ConcatDataset), or call trainer.validate or trainer.test for each"
        )
    return given[0]


def warn_if_incomplete(name: str, loaders: Any, scored: Tensor) -> None:  # noqa: ANN401 (Lightning's type)
    """Warn if only a part of the images (``limit_val_batches``, ``drop_last``) or of the classes was scored.

    Args:
        name: Name of the evaluation, for the warning.
        loaders: The Trainer's loaders.
        scored: Number of images scored on this rank, then the number of positives of each class.
    """
    images, *positives = all_sum(scored).tolist()
    classes = sum(count > 0 for count in positives)
    loader = only_loader(loaders)
    try:
        expected = count_images(loader) if isinstance(loader, DataLoader) else images
    except TypeError:  # an iterable data set, or a sampler without a length
        expected = images
    if images < expected or classes < len(positives):
        rank_zero_warn(
            f"the {name}'s metrics cover {images} of {expected} images and {classes} of {len(positives)} classes"
        )


def counted_loader(loader: Any) -> DataLoader[Any]:  # noqa: ANN401 (Lightning's type)
    """Return the training loader of a fit that needs to know the number of images.

    Raises:
        CxlpError: If there are several loaders, or the data set has no length.
    """
    data = loader.dataset if isinstance(loader, DataLoader) else None
    if isinstance(loader, DataLoader) and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return loader
    raise CxlpError(
        "the frozen fit needs to know the number of training images: pass one DataLoader of a data set with a length "
        f"(not an IterableDataset), not {type(loader if data is None else data).__name__}"
    )
