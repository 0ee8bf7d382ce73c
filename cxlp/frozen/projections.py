"""A part's projections, fitted to a stream of maps: the PCA of local features, and the guide's principal axes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cxlp.frozen.pca import Moments
from cxlp.heads.average import AveragePooling
from cxlp.heads.cross_layer import align_maps, centres, sub_arrays
from cxlp.models.branch import Part
from cxlp.utils.errors import CxlpError


def random_places(count: int, wanted: int, positions: Tensor) -> Tensor:
    """Choose ``wanted`` of ``count`` places of each image ``(b, wanted)``, by its position among the images only."""
    return torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(p))[:wanted] for p in positions.tolist()]
    )


class ProjectionFit:
    """Fits the projections that a part has, of local features or guide or both.

    With several ranks, each observes its share of the images and all call :meth:`solve` together.

    Args:
        part: On the device to work on.
        images: How many images will be observed, over all ranks.
        per_image: How many local features each gives, at random places, if it has so many.
        device: Where the maps are.

    Raises:
        CxlpError: If there will be too few local features for so many axes.
    """

    def __init__(self, part: Part, images: int, per_image: int, device: torch.device) -> None:
        assert not isinstance(part.encoding, AveragePooling)
        self.part, self.encoding, self.per_image = part, part.encoding, per_image
        self.local: Moments | None = None
        self.guide: Moments | None = None
        if part.projection is not None:
            self._check(images, "PCA", "pca_dim", part.projection.out_channels)
            self.local = Moments(part.encoding.local_dim, device)
        if part.guide_projection is not None:
            self._check(images, "projection of the guide", "guide_dim", part.guide_projection.out_channels)
            self.guide = Moments(part.guide_projection.in_channels, device)

    def observe(self, maps: Sequence[Tensor], positions: Tensor) -> None:
        """Take in what the part encodes of ``b`` images, and their places ``(b,)`` among all images."""
        e = self.encoding
        # As pooling sees them: resampled where it resamples them.
        local, guide = align_maps(maps[0].float(), maps[-1].float(), e.align)
        if self.local is not None:
            vectors = sub_arrays(local, e.size, e.stride, e.padding)  # (b V, N, d)
            self.local.update(self._sample(vectors, positions))
        if self.guide is not None:
            vectors = centres(guide, e.size, e.stride, e.padding).flatten(2).transpose(1, 2)  # (b V, N, K)
            self.guide.update(self._sample(vectors, positions))

    def solve(self) -> None:
        """Set the projections' weights, the same on all ranks."""
        if self.local is not None:
            projection = self.part.projection
            assert projection is not None and projection.bias is not None
            self.local.merge_ranks()
            axes = self.local.principal_axes(projection.out_channels)  # (p, d)
            projection.weight.copy_(axes.view_as(projection.weight))
            projection.bias.copy_(-(axes @ self.local.mean))
        if self.guide is not None:
            projection = self.part.guide_projection
            assert projection is not None
            self.guide.merge_ranks()
            # Not centred: without a bias the projection approximates the activations themselves.
            axes = self.guide.principal_axes(projection.out_channels, centred=False)  # (k, K)
            projection.weight.copy_(axes.view_as(projection.weight))

    def _sample(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Those at random places of each image, ``(b V, N, d) -> (b k, d)``; the places depend on its position only."""
        vectors = vectors.reshape(len(positions), -1, vectors.shape[2])  # (b, V N, d)
        if self.per_image < vectors.shape[1]:
            places = random_places(vectors.shape[1], self.per_image, positions)
            vectors = torch.take_along_dim(vectors, places.to(vectors.device).unsqueeze(2), dim=1)
        return vectors.flatten(0, 1)

    def _check(self, images: int, what: str, key: str, axes: int) -> None:
        """Refuse what the fit could only refuse after the pass."""
        given = min(self.part.local_features, self.per_image)
        if images * given <= axes:
            raise CxlpError(
                f"{what} to {axes} dimensions needs more than {axes} local features; {images} training images give "
                f"{given} each (of {self.part.local_features}): lower model.network.pooling.{key}"
            )
