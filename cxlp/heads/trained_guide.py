"""Cross-layer pooling over a trained guide: the journal version's second scheme (arXiv 1510.00921)."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.heads.encoding import LocalEncoding
from cxlp.utils.distributed import all_sum
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss

#: What :meth:`TrainedGuidePooling.learn` goes over: local features ``(b, N, p)`` and labels of some images.
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class TrainedGuidePooling(LocalEncoding):
    """Pool one layer's local features under channels that were trained on them.

    Local features, such as fully connected activations of an image's regions, are reduced by PCA to ``x_i``. A
    1 x 1 convolution with ReLU, ``a_i = max(W x_i / s + c, 0)`` in R^K, is trained with the class labels of the
    images and then takes the place of the upper layer:

        P_k = sum_i a_ik x_i.

    Its training puts a linear classifier on the mean of ``a_i`` over the image's places, which is dropped
    afterwards. (That the guide is trained under class supervision is the paper's; the recipe is ours.)

    Args:
        channels: Channels C of the map.
        pca_dim: Size p of a projected local feature.
        guide_channels: Number K of trained pooling channels.
        normalise: What follows the pooling; signed square root and L2 if not given.
    """

    unit: Tensor

    def __init__(
        self, channels: int, pca_dim: int | None, guide_channels: int = 100, normalise: nn.Module | None = None
    ) -> None:
        super().__init__(channels, pca_dim, normalise)
        if pca_dim is None:
            raise CxlpError(
                f"model.network.pooling.pca_dim is null, but a trained guide needs a PCA: choose 1 to {channels}"
            )
        if guide_channels < 1:
            raise CxlpError(f"model.network.pooling.atoms is {guide_channels}: a guide has 1 channel or more")
        self.guide = nn.Linear(self.dim, guide_channels)
        self.register_buffer("unit", torch.ones(()))
        self.out_features = guide_channels * self.dim

    def activations(self, x: Tensor) -> Tensor:
        """Compute the guide of projected local features: ``(B, N, p) -> (B, N, K)``."""
        weight, bias = self.guide.weight.to(x.dtype), self.guide.bias.to(x.dtype)
        return F.linear(x / self.unit, weight, bias).relu()

    def encode(self, x: Tensor) -> Tensor:
        """Pool: ``(B, N, p) -> (B, K, p)``."""
        return self.activations(x).transpose(1, 2) @ x

    @torch.enable_grad()
    def learn(self, batches: Batches, classes: int, epochs: int = 30, rate: float = 3e-3) -> None:
        """Train the guide by Adam, its rate falling to zero along half a cosine.

        All ranks call it together; each gives its own images of the same sequence of batches, and the gradients
        are summed, so that the result is that of a single process.

        Args:
            batches: Starts one pass over the images.
            classes: Number of classes.
            epochs: Passes.
            rate: Peak learning rate.
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
            # Entries of x / unit are about 1 / sqrt(p): so responses begin at about 1.
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
