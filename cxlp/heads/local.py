"""Base class of heads that encode the places of one layer's map as local features."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cxlp.heads.base import Head, Shape
from cxlp.heads.description import check_count
from cxlp.heads.fitting import HeadFit, KeptMaps, TrainingSet
from cxlp.heads.normalisation import Normalise, full_precision
from cxlp.heads.projection import AxesFit, PrincipalAxes, local_vectors, project
from cxlp.heads.views import Views


class LocalHead(Head):
    """Base class of heads that encode local features of one layer's maps, all views of an image together.

    A local feature is the vector at one place of the map, optionally projected by a PCA. A subclass defines
    :meth:`encode` and sets ``out_features`` in :meth:`build`. A subclass that fits more than the PCA, such as a
    codebook, also defines :meth:`check_training` and :meth:`learn_from`.

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        normalise: The normalisation that follows the encoding.
        layers: The layer that is encoded; ``None``: the backbone's last layer.
        views: The views of an image whose local features are encoded together.

    Attributes:
        projection: The PCA as a 1 x 1 convolution, or ``None``. Set by :meth:`connect`.
        dim: Size of an encoded local feature, p or C. Set by :meth:`connect`.
    """

    def __init__(self, pca_dim: int | None, normalise: Normalise, layers: Sequence[str] | None, views: Views) -> None:
        super().__init__(layers, views)
        self.pca_dim = pca_dim
        self.normalise = normalise

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projection."""
        ((channels, height, width),) = shapes
        check_count("pca_dim", self.pca_dim, channels, f"the layer has {channels} channels")
        self.dim = self.pca_dim or channels
        self.local_features = self.view_count * height * width
        self.projection = None if self.pca_dim is None else nn.Conv2d(channels, self.pca_dim, 1)

    def local(self, features: Tensor, views: int = 1) -> Tensor:
        """Compute projected local features: ``(B * V, C, H, W) -> (B, V H W, p)``, float32 for half inputs."""
        maps = full_precision(features) if self.projection is None else project(self.projection, features)
        return local_vectors(maps, views)

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        """Encode and normalise.

        Args:
            features: ``(B * V, C, H, W)``.
            views: Number V of consecutive maps that belong to one image. Their local features are encoded together.

        Returns:
            ``(B, out_features)``, float32 for half inputs.
        """
        with torch.autocast(features.device.type, enabled=False):
            vector: Tensor = self.normalise(self.encode(self.local(features, views)))
            return vector

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Encode projected local features ``(B, N, p)`` into ``(B, K, d)``, with ``K d = out_features``."""

    # --- fit --------------------------------------------------------------------------------------

    def start_fit(self, data: TrainingSet) -> HeadFit | None:
        """Return the fit of the PCA and of :meth:`learn_from`, or ``None`` if the head has neither."""
        learns = type(self).learn_from is not LocalHead.learn_from
        return _LocalFit(self, data) if learns or self.projection is not None else None

    def check_training(self, data: TrainingSet) -> None:
        """Raise errors of :meth:`learn_from` in advance, before the pass over the images; none by default."""

    def learn_from(self, kept: KeptMaps, data: TrainingSet) -> None:
        """Fit the parts after the PCA, which is already fitted; nothing by default."""

    def projected(self, kept: KeptMaps) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over this rank's projected local features, ``(b, N, p)``, and the positions of their images."""
        for (features,), positions in kept:
            yield self.local(features, self.view_count), positions


class _LocalFit(AxesFit):
    """Fit of the PCA, if there is one, and then of the head's ``learn_from``."""

    def __init__(self, head: LocalHead, data: TrainingSet) -> None:
        axes = []
        if head.projection is not None:
            axes.append(PrincipalAxes(head.projection, data, head.local_features, "PCA", "pca_dim"))
        super().__init__(axes, lambda maps: [local_vectors(maps[0].float()) for _ in axes])
        self.head, self.data = head, data
        head.check_training(data)

    @torch.no_grad()
    def solve(self, kept: KeptMaps) -> None:
        if self.axes:
            super().solve(kept)
        self.head.learn_from(kept, self.data)
        self.head.mark_fitted()
