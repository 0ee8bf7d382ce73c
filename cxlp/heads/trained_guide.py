"""Cross-layer pooling with a trained guide, from the paper's journal version (arXiv 1510.00921)."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.heads.base import Shape
from cxlp.heads.evidence import shares_of_guide
from cxlp.heads.fitting import KeptMaps, TrainingSet
from cxlp.heads.local import LocalHead
from cxlp.heads.normalisation import Normalise
from cxlp.heads.operator import cross_layer_pooling
from cxlp.heads.projection import local_vectors, project
from cxlp.heads.views import Views
from cxlp.utils.distributed import all_sum
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss

#: Function that starts a pass over batches of local features ``(b, N, p)`` and labels.
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

#: Global batch size for training a guide, in images.
GUIDE_BATCH = 64


class TrainedGuidePooling(LocalHead):
    """Pooling of one layer's local features with pooling channels that are trained on these features.

    Local features, such as fully connected activations of an image's regions, are projected by PCA to ``x_i``. A
    1 x 1 convolution with ReLU, ``a_i = max(W x_i / s + c, 0)`` in R^K, is trained with the class labels of the
    images and then replaces the upper layer::

        P_k = sum_i a_ik x_i.

    During its training, a linear classifier receives the mean of ``a_i`` over the image's places; this classifier is
    discarded afterwards. (Training the guide with class labels follows the paper; the training recipe is our own.)

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        channels: Number K of trained pooling channels.
        zscore, channel_l2, sign, sqrt, l2: The normalisation, see :class:`~cxlp.heads.normalisation.Normalise`.
        layers: The layer that is pooled; ``None``: the backbone's last layer.
        views: The views of an image whose local features are pooled together.

    Example:
        >>> head = TrainedGuidePooling(pca_dim=4, channels=3).connect((8, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13)).shape
        torch.Size([2, 12])
    """

    unit: Tensor

    needs_labels = True

    def __init__(
        self,
        pca_dim: int | None = 500,
        channels: int = 100,
        zscore: bool = False,
        channel_l2: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        normalise = Normalise(zscore=zscore, channel_l2=channel_l2, sign=sign, sqrt=sqrt, l2=l2)
        super().__init__(pca_dim, normalise, layers, views)
        if channels < 1:
            raise CxlpError(f"channels is {channels}: it must be 1 or more")
        self.channels = channels
        self.zscore, self.channel_l2, self.sign, self.sqrt, self.l2 = zscore, channel_l2, sign, sqrt, l2

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projection and the guide."""
        super().build(shapes)
        self.guide = nn.Linear(self.dim, self.channels)
        self.register_buffer("unit", torch.ones(()))
        self.out_features = self.channels * self.dim

    def activations(self, x: Tensor) -> Tensor:
        """Compute the guide's activations for projected local features: ``(B, N, p) -> (B, N, K)``."""
        weight, bias = self.guide.weight.to(x.dtype), self.guide.bias.to(x.dtype)
        return F.linear(x / self.unit, weight, bias).relu()

    def encode(self, x: Tensor) -> Tensor:
        """Pool the local features with the guide's activations: ``(B, N, p) -> (B, K, p)``."""
        return self.activations(x).transpose(1, 2) @ x

    def explain(self, maps: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split a score over the trained channels and places, see :mod:`cxlp.heads.evidence`."""
        local = maps[0] if self.projection is None else project(self.projection, maps[0])  # (V, p, h, w)
        guide = self.activations(local_vectors(local)).transpose(1, 2)  # (V, K, h w)
        activations = guide.reshape(*guide.shape[:2], *local.shape[-2:])

        def pool(guide: Tensor) -> Tensor:
            return cross_layer_pooling(local.detach(), guide).sum(dim=0)  # (K, p)

        return shares_of_guide(pool, activations, self.normalise, weights), activations

    def learn_from(self, kept: KeptMaps, data: TrainingSet) -> None:
        """Train the guide on projected local features, which are stored on disk and read once per epoch."""
        shape = self.local_features, self.dim
        with kept.measure("guide"), kept.scratch(shape[0] * shape[1]) as store:
            row: dict[int, int] = {}  # position -> row, for this rank's images
            for x, positions in self.projected(kept):
                store.write(torch.arange(len(row), len(row) + len(x)), x.flatten(1))
                row.update((position, len(row)) for position in positions.tolist())
            # A random order, equal on all ranks: data sets list their images class by class.
            order = torch.randperm(data.images, generator=torch.Generator().manual_seed(0))

            def batches() -> Iterator[tuple[Tensor, Tensor]]:
                for chosen in torch.split(order, GUIDE_BATCH):
                    mine = [position for position in chosen.tolist() if position in row]
                    x = torch.zeros(len(mine), *shape)
                    for i, position in enumerate(mine):
                        x[i] = store.read(row[position], row[position] + 1).view(shape)
                    yield x.to(data.device), kept.labels[mine].to(data.device)

            self.learn(batches, data.classes)

    @torch.enable_grad()
    def learn(self, batches: Batches, classes: int, epochs: int = 30, rate: float = 3e-3) -> None:
        """Train the guide with Adam and a cosine learning rate schedule that ends at zero.

        All ranks call this method together. Each rank passes its own images of the same sequence of batches, and the
        gradients are summed, so the result equals that of a single process.

        Args:
            batches: Function that starts a pass over the images.
            classes: Number of classes.
            epochs: Number of passes.
            rate: Initial learning rate.
        """
        norms, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        steps = 0
        for x, _ in batches():
            norms += x.cpu().double().square().sum()
            count += x.shape[0] * x.shape[1]
            steps += 1
        self.unit.copy_((all_sum(norms) / all_sum(count)).sqrt().clamp_min(1e-12))
        generator = torch.Generator().manual_seed(0)
        dim, channels = self.guide.in_features, self.guide.out_features
        with torch.no_grad():
            # Entries of x / unit are about 1 / sqrt(p), so these weights give initial activations of about 1.
            self.guide.weight.copy_(torch.randn(channels, dim, generator=generator))
            self.guide.bias.zero_()
        classifier = nn.Linear(channels, classes, device=self.guide.weight.device)
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        parameters = [*self.guide.parameters(), *classifier.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps * epochs))
        for _ in range(epochs):
            for x, labels in batches():
                optimizer.zero_grad()
                size = all_sum(torch.tensor(float(len(x))))
                if len(x):
                    scores = classifier(self.activations(x).mean(dim=1))
                    loss = classification_loss(scores, labels) * len(x) / size.to(x.device)
                else:  # a rank without images in this batch
                    loss = sum((p.sum() * 0 for p in parameters), torch.zeros((), device=self.guide.weight.device))
                loss.backward()  # type: ignore[no-untyped-call]
                for p in parameters:
                    assert p.grad is not None
                    all_sum(p.grad)
                optimizer.step()
                schedule.step()
        for p in self.guide.parameters():
            p.grad = None
