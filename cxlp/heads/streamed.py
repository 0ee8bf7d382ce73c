"""Fit of a head's projections in one pass over a loader, for scripts without a Trainer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.heads.fitting import HeadFit, Rows, TrainingSet
from cxlp.utils.distributed import rank, world_size
from cxlp.utils.errors import CxlpError

if TYPE_CHECKING:
    from cxlp.heads.base import Head

#: Types that a backbone may return.
Maps = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]


class _DiscardedMaps:
    """Implementation of ``KeptMaps`` that stores no maps. Projections never read them again."""

    labels = torch.zeros(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        raise NotImplementedError("maps of a stream are not kept")

    def scratch(self, width: int) -> AbstractContextManager[Rows]:
        raise NotImplementedError("maps of a stream are not kept")

    def measure(self, phase: str) -> AbstractContextManager[None]:
        return nullcontext()


@torch.no_grad()
def fit_pca(
    head: "Head",
    loader: Iterable[Any],
    backbone: Callable[[Tensor], Maps] | None,
    images: int | None = None,
    vectors: int = 100_000,
) -> None:
    """Fit a head's PCA, or its other projections, in one pass over a loader.

    Memory holds one batch and the d x d scatter matrix. The result equals that of the frozen mode for the same images
    in the same order and precision. With several processes, each process iterates over its share of the images as
    assigned by a ``DistributedSampler``, and all processes call this function together.

    Args:
        head: The head. It is connected to the maps' shapes if it is not connected yet.
        loader: Yields batches ``images``, ``(images, ...)`` or ``{"image": images}``. Without a backbone, it yields
            maps: one tensor, or several tensors ordered from the lower to the upper layer.
        backbone: Function from images to maps. A module is switched to evaluation mode during the pass. For a
            :class:`~cxlp.backbones.backbone.Backbone`, the head selects its layers and cuts its views.
        images: Total number of images that the loader yields; ``None``: ``len(loader.dataset)``.
        vectors: Approximate number of local features for the PCA, as ``model.frozen.pca_vectors``.

    Raises:
        CxlpError: If the head has no projection, has to fit more than projections, or there are too few images.
    """
    if head.needs_fit or head.needs_labels:
        raise CxlpError(
            f"{head.name} fits more than a PCA and reads the maps several times: fit it in a network, with cxlp.Frozen "
            "or cxlp.frozen.fit.FrozenFit"
        )
    if images is None:
        try:
            images = len(loader.dataset)  # type: ignore[attr-defined]
        except (AttributeError, TypeError) as error:
            raise CxlpError(
                "the loader's number of images is unknown, but determines how many local features are drawn: pass "
                "fit_pca(..., images=N)"
            ) from error
    fit: HeadFit | None = None
    seen, ranks = 0, world_size()
    with _evaluation_mode(backbone):
        for batch in loader:
            maps = _maps_of(head, batch, backbone)
            views = head.views.count(backbone.image_size) if isinstance(backbone, Backbone) else head.view_count
            head.connect(*(m.shape[1:] for m in maps), views=views)
            if fit is None:
                fit = head.start_fit(TrainingSet(images, 0, -(-vectors // max(1, images)), maps[0].device))
                if fit is None:
                    raise CxlpError(f"{head.name} has no projection to fit: set its pca_dim, or do not call fit_pca")
            # The order of DistributedSampler. Its positions beyond the number of images are repeats, which are ignored.
            positions = (seen + torch.arange(len(maps[0]) // views)) * ranks + rank()
            seen += len(positions)
            kept = int((positions < images).sum()) if ranks > 1 else len(positions)
            fit.observe(tuple(m[: kept * views] for m in maps), positions[:kept])
    if fit is None:
        raise CxlpError("the loader yields no batches, so the PCA cannot be fitted: pass a loader with images")
    fit.solve(_DiscardedMaps())


def _maps_of(head: "Head", batch: Any, backbone: Callable[[Tensor], Maps] | None) -> tuple[Tensor, ...]:  # noqa: ANN401 (whatever a loader yields)
    """Return the head's maps of a batch."""
    if backbone is None:
        found: Any = batch
    else:
        inputs = batch["image"] if isinstance(batch, Mapping) else batch if isinstance(batch, Tensor) else batch[0]
        weight = next(backbone.parameters(), None) if isinstance(backbone, nn.Module) else None
        inputs = inputs if weight is None else inputs.to(weight.device)
        if isinstance(backbone, Backbone):
            places = [backbone.layers.index(layer) for layer in head.layers_of(backbone.layers)]
            maps = backbone(head.views.cut(inputs, backbone.image_size))
            return tuple(maps[place] for place in places)
        found = backbone(inputs)
    found = list(found.values()) if isinstance(found, Mapping) else [found] if isinstance(found, Tensor) else found
    maps = tuple(found[: head.takes])
    if len(maps) < head.takes or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        shapes = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in found]
        raise CxlpError(
            f"{head.name} takes {head.takes} maps (B, C, H, W), lower before upper, but the "
            f"{'loader yields' if backbone is None else 'backbone returns'} {shapes}"
        )
    return maps


@contextmanager
def _evaluation_mode(backbone: Callable[[Tensor], Maps] | None) -> Iterator[None]:
    """Context in which a network is in evaluation mode and its weights are held."""
    if not isinstance(backbone, nn.Module):
        yield
        return
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with backbone.held() if isinstance(backbone, Backbone) else nullcontext():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
