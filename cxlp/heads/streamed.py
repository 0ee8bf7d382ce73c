"""Fitting a head's projections to a stream of batches, for scripts without a Trainer."""

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

#: What makes maps of images.
Maps = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]


class _Unkept:
    """The maps that have passed: projections do not ask for them again."""

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
    """Fit a head's PCA, or other projections, to a loader in one pass; memory holds one batch and the d x d scatter.

    The numbers are those of the frozen mode on the same images in the same order and precision. With several
    processes, each has its share as a ``DistributedSampler`` deals it, and all call this together.

    Args:
        head: It is connected to the maps' shapes if it is not yet.
        loader: Its batches are images, ``(images, ...)`` or ``{"image": images}``; without a backbone, maps: a
            tensor or, lower before upper, several.
        backbone: Makes the maps; a module evaluates meanwhile. Of a :class:`~cxlp.backbones.backbone.Backbone` the
            head takes its layers and views.
        images: How many the loader gives in all; ``None``: ``len(loader.dataset)``.
        vectors: About how many local features the PCA sees, as ``model.frozen.pca_vectors``.

    Raises:
        CxlpError: If there is nothing to project, or more to fit than projections; if there are too few images.
    """
    if head.needs_fit or head.needs_labels:
        raise CxlpError(
            f"{head.name} fits more than a PCA, to maps that it reads several times: fit it in a network, by "
            "cxlp.Frozen or cxlp.frozen.fit.FrozenFit"
        )
    if images is None:
        try:
            images = len(loader.dataset)  # type: ignore[attr-defined]
        except (AttributeError, TypeError) as error:
            raise CxlpError(
                "how many images the loader gives is not known, by which local features are drawn: say it, "
                "fit_pca(..., images=N)"
            ) from error
    fit: HeadFit | None = None
    seen, ranks = 0, world_size()
    with _evaluating(backbone):
        for batch in loader:
            maps = _maps_of(head, batch, backbone)
            views = head.views.count(backbone.image_size) if isinstance(backbone, Backbone) else head.view_count
            head.connect(*(m.shape[1:] for m in maps), views=views)
            if fit is None:
                fit = head.start_fit(TrainingSet(images, 0, -(-vectors // max(1, images)), maps[0].device))
                if fit is None:
                    raise CxlpError(f"{head.name} has no projection to fit: give it pca_dim, or leave fit_pca out")
            # As DistributedSampler deals images; what it gives beyond their number are repeats.
            positions = (seen + torch.arange(len(maps[0]) // views)) * ranks + rank()
            seen += len(positions)
            kept = int((positions < images).sum()) if ranks > 1 else len(positions)
            fit.observe(tuple(m[: kept * views] for m in maps), positions[:kept])
    if fit is None:
        raise CxlpError("the loader gives no batches: there is nothing to fit the PCA to")
    fit.solve(_Unkept())


def _maps_of(head: "Head", batch: Any, backbone: Callable[[Tensor], Maps] | None) -> tuple[Tensor, ...]:  # noqa: ANN401 (whatever a loader yields)
    """The maps that the head takes, of a batch."""
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
            f"{'loader' if backbone is None else 'backbone'} gives {shapes}"
        )
    return maps


@contextmanager
def _evaluating(backbone: Callable[[Tensor], Maps] | None) -> Iterator[None]:
    """Have a network evaluate inside a ``with``, and hold its weights."""
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
