"""Local features of maps, and the convolutions that project them to their principal axes."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.heads.fitting import HeadFit, KeptMaps, TrainingSet
from cxlp.heads.normalisation import full_precision
from cxlp.heads.pca import Moments
from cxlp.utils.errors import CxlpError


def local_vectors(features: Tensor, views: int = 1) -> Tensor:
    """List the vectors at all places of an image's maps: ``(B * V, C, H, W) -> (B, V H W, C)``."""
    vectors = features.flatten(2).transpose(1, 2)  # (B V, H W, C)
    return vectors.reshape(-1, views * vectors.shape[1], vectors.shape[2])


def project(projection: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a convolution in float32 or wider, whatever the precision of its weights and of the map."""
    x = full_precision(features)
    bias = None if projection.bias is None else projection.bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, projection.weight.to(x.dtype), bias, projection.stride, projection.padding)


def random_places(count: int, wanted: int, positions: Tensor) -> Tensor:
    """Choose ``wanted`` of ``count`` places of each image ``(b, wanted)``, by its position among the images only."""
    return torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(p))[:wanted] for p in positions.tolist()]
    )


class PrincipalAxes:
    """Fits a convolution to the principal axes of a stream of the vectors that it projects.

    Either to those of the covariance, as PCA does; then the bias, if there is one, is minus the projected mean. Or to
    the axes ``V`` of the second moment ``E[x x^T]``: then ``V^T V x`` is the best approximation of its rank to the
    vectors themselves.

    Whitening by ``w`` divides the projection to an axis by ``(l / l_1)^(w / 2)``, where ``l`` is the variance (or
    second moment) along it, and ``l_1`` that of the first axis: along it projections have a variance of
    ``l^(1 - w) l_1^w``. What is below ``1e-6 l_1`` counts as that.

    With several ranks, each observes its share of the images and all call :meth:`solve` together.

    Args:
        projection: The convolution, on the device to work on.
        data: The training images.
        available: How many vectors an image has.
        what: What the axes are of, for the error.
        option: The option that says how many axes there are.
        centred: Whether of the covariance; else of the second moment.
        whiten: w, 0 to 1.

    Raises:
        CxlpError: If there will be too few vectors for so many axes.
    """

    def __init__(
        self,
        projection: nn.Conv2d,
        data: TrainingSet,
        available: int,
        what: str,
        option: str,
        *,
        centred: bool = True,
        whiten: float = 0.0,
    ) -> None:
        self.projection, self.per_image = projection, data.per_image
        self.centred, self.whiten = centred, whiten
        axes, given = projection.out_channels, min(available, data.per_image)
        if data.images * given <= axes:
            raise CxlpError(
                f"{what} to {axes} dimensions needs more than {axes} local features; {data.images} training images "
                f"give {given} each (of {available}): lower {option}"
            )
        self.moments = Moments(projection.weight[0].numel(), data.device)

    def __repr__(self) -> str:
        return f"PrincipalAxes({len(self.projection.weight):,} axes of {self.moments!r})"

    def observe(self, vectors: Tensor, positions: Tensor) -> None:
        """Take in vectors ``(b V, N, d)`` of ``b`` images at ``positions``, of each image those at random places."""
        vectors = vectors.reshape(len(positions), -1, vectors.shape[2])  # (b, V N, d)
        if self.per_image < vectors.shape[1]:
            places = random_places(vectors.shape[1], self.per_image, positions)
            vectors = torch.take_along_dim(vectors, places.to(vectors.device).unsqueeze(2), dim=1)
        self.moments.update(vectors.flatten(0, 1))

    @torch.no_grad()
    def solve(self) -> None:
        """Set the convolution's weights, the same on all ranks."""
        weight, bias = self.projection.weight, self.projection.bias
        self.moments.merge_ranks()
        axes, variances = self.moments.principal_axes(len(weight), self.centred)  # (p, d), (p,)
        if self.whiten:
            axes = axes * (variances / variances[0]).clamp_min(1e-6).pow(-self.whiten / 2)[:, None]
        weight.copy_(axes.view_as(weight))
        if bias is not None:
            bias.copy_(-(axes @ self.moments.mean))


class AxesFit(HeadFit):
    """Fits a head's projections.

    Args:
        axes: One for each projection.
        vectors: Gives, of the maps of a batch, what each projection is applied to, ``(b V, N, d)``.
    """

    def __init__(
        self, axes: Sequence[PrincipalAxes], vectors: Callable[[tuple[Tensor, ...]], Sequence[Tensor]]
    ) -> None:
        self.axes, self.vectors = axes, vectors

    def __repr__(self) -> str:
        return f"AxesFit({', '.join(map(repr, self.axes))})"

    def observe(self, maps: tuple[Tensor, ...], positions: Tensor) -> None:
        """Show the vectors to the axes."""
        for axes, vectors in zip(self.axes, self.vectors(maps), strict=True):
            axes.observe(vectors, positions)

    def solve(self, kept: KeptMaps) -> None:
        """Set the projections."""
        with kept.measure("PCA"):
            for axes in self.axes:
                axes.solve()
