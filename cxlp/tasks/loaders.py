"""Loaders of any kind: which one is used, and how many images it has."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cxlp.utils.distributed import all_sum, world_size
from cxlp.utils.errors import CxlpError


def count_images(loader: DataLoader[Any]) -> int:
    """Count the images that one pass sees on all ranks together, each once."""
    sampler = sampler_of(loader)
    if hasattr(sampler, "num_replicas"):
        chosen: Any = getattr(sampler, "dataset", loader.dataset)  # Lightning's may wrap one that leaves images out
        return len(chosen)
    # A single rank's sampler may leave images out, too.
    return len(sampler) if world_size() == 1 else len(loader.dataset)  # type: ignore[arg-type]


def sampler_of(loader: DataLoader[Any]) -> Any:  # noqa: ANN401 (of any kind)
    """Return the sampler that chooses images, which a batch sampler may hold."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def only_loader(loaders: Any) -> Any:  # noqa: ANN401 (Lightning's type)
    """Return the loader that is evaluated.

    Raises:
        CxlpError: If there are several.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    given = loaders if isinstance(loaders, Sequence) else [loaders]
    if len(given) != 1:
        raise CxlpError(
            f"{len(given)} loaders were given to evaluate, but there is one set of metrics: give one loader (of a "
            "ConcatDataset), or call trainer.validate or trainer.test for each"
        )
    return given[0]


def warn_of_parts(name: str, loaders: Any, scored: Tensor) -> None:  # noqa: ANN401 (whatever a loader yields)
    """Warn if metrics are of a part of the images (``limit_val_batches``, ``drop_last``) or of the classes.

    Args:
        name: What is evaluated.
        loaders: Of it.
        scored: Images of this rank that were scored, and positives of each class.
    """
    images, *positives = all_sum(scored).tolist()
    classes = sum(count > 0 for count in positives)
    loader = only_loader(loaders)
    try:
        expected = count_images(loader) if isinstance(loader, DataLoader) else images
    except TypeError:  # a stream, or a sampler that does not know its length
        expected = images
    if images < expected or classes < len(positives):
        rank_zero_warn(
            f"the {name}'s metrics are of {images} of {expected} images, which show {classes} of {len(positives)} "
            "classes"
        )


def counted_loader(loader: Any) -> DataLoader[Any]:  # noqa: ANN401 (Lightning's type)
    """Return the training loader of a fit that needs to know how many images there are.

    Raises:
        CxlpError: If there are several, or its length is not known.
    """
    data = loader.dataset if isinstance(loader, DataLoader) else None
    if isinstance(loader, DataLoader) and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return loader
    raise CxlpError(
        "the frozen fit needs to know how many training images there are: give one DataLoader, of a data set that has "
        f"a length and is not iterated, not {type(loader if data is None else data).__name__}"
    )
