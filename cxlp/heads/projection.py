"""Local features of maps, and convolutions that project them to their principal axes."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.heads.fitting import HeadFit, KeptMaps, TrainingSet
from cxlp.heads.normalisation import full_precision
from cxlp.heads.pca import Moments
from cxlp.utils.errors import CxlpError


def local_vectors(features: Tensor, views: int = 1) -> Tensor:
    """Return the vectors at all places of each image's maps: ``(B * V, C, H, W) -> (B, V H W, C)``."""
    vectors = features.flatten(2).transpose(1, 2)  # (B V, H W, C)
    return vectors.reshape(-1, views * vectors.shape[1], vectors.shape[2])


def project(projection: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a convolution in float32 or float64, for weights and maps of any precision."""
    x = full_precision(features)
    bias = None if projection.bias is None else projection.bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, projection.weight.to(x.dtype), bias, projection.stride, projection.padding)


def random_places(count: int, wanted: int, positions: Tensor) -> Tensor:
    """Draw ``wanted`` of ``count`` places per image, ``(b, wanted)``, seeded with the image's position."""
    return torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(p))[:wanted] for p in positions.tolist()]
    )


class PrincipalAxes:
    """Fit of a convolution to the principal axes of its input vectors, which are passed in batches.

    The axes are those of the covariance, as in PCA; the bias, if there is one, is then minus the projected mean. With
    ``centred=False``, the axes ``V`` are those of the second moment ``E[x x^T]``, and ``V^T V x`` is the best
    approximation of this rank to the vectors.

    Whitening with strength ``w`` divides the projection to an axis by ``(l / l_1)^(w / 2)``, where ``l`` is the
    variance (or second moment) along this axis and ``l_1`` that along the first axis. The projections to this axis then
    have variance ``l^(1 - w) l_1^w``. Values of ``l`` below ``1e-6 l_1`` are replaced by ``1e-6 l_1``.

    With several ranks, each rank observes its share of the images, and all ranks call :meth:`solve` together.

    Args:
        projection: The convolution, on the device of the computation.
        data: Description of the training images.
        available: Number of vectors per image.
        what: Name of the projection, for the error message.
        option: Name of the option that sets the number of axes, for the error message.
        centred: Use the covariance; if ``False``, the second moment.
        whiten: Strength w of the whitening, 0 to 1.

    Raises:
        CxlpError: If there are too few vectors for this number of axes.
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
                f"{what} to {axes} dimensions needs more than {axes} local features, but uses {given} (of {available}) "
                f"from each of {data.images} training images: lower {option}"
            )
        self.moments = Moments(projection.weight[0].numel(), data.device)

    def __repr__(self) -> str:
        return f"PrincipalAxes({len(self.projection.weight):,} axes of {self.moments!r})"

    def observe(self, vectors: Tensor, positions: Tensor) -> None:
        """Process vectors ``(b V, N, d)`` of ``b`` images, at most ``per_image`` random ones per image."""
        vectors = vectors.reshape(len(positions), -1, vectors.shape[2])  # (b, V N, d)
        if self.per_image < vectors.shape[1]:
            places = random_places(vectors.shape[1], self.per_image, positions)
            vectors = torch.take_along_dim(vectors, places.to(vectors.device).unsqueeze(2), dim=1)
        self.moments.update(vectors.flatten(0, 1))

    @torch.no_grad()
    def solve(self) -> None:
        """Set the convolution's weights, equal on all ranks."""
        weight, bias = self.projection.weight, self.projection.bias
        self.moments.merge_ranks()
        axes, variances = self.moments.principal_axes(len(weight), self.centred)  # (p, d), (p,)
        if self.whiten:
            axes = axes * (variances / variances[0]).clamp_min(1e-6).pow(-self.whiten / 2)[:, None]
        weight.copy_(axes.view_as(weight))
        if bias is not None:
            bias.copy_(-(axes @ self.moments.mean))


class AxesFit(HeadFit):
    """Fit of a head's projections.

    Args:
        axes: The fit of each projection.
        vectors: Function from the maps of a batch to the input vectors of each projection, ``(b V, N, d)``.
    """

    def __init__(
        self, axes: Sequence[PrincipalAxes], vectors: Callable[[tuple[Tensor, ...]], Sequence[Tensor]]
    ) -> None:
        self.axes, self.vectors = axes, vectors

    def __repr__(self) -> str:
        return f"AxesFit({', '.join(map(repr, self.axes))})"

    def observe(self, maps: tuple[Tensor, ...], positions: Tensor) -> None:
        """Pass the input vectors to the fit of each projection."""
        for axes, vectors in zip(self.axes, self.vectors(maps), strict=True):
            axes.observe(vectors, positions)

    def solve(self, kept: KeptMaps) -> None:
        """Set the weights of all projections."""
        with kept.measure("PCA"):
            for axes in self.axes:
                axes.solve()
