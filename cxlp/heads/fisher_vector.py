"""Fisher vectors of local features for a Gaussian mixture and for sparse coding, in pure torch.

A Fisher vector describes an image by the gradient of the log-likelihood of its local features under a
generative model, which is fitted to local features of the training images.
"""

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cxlp.heads.base import Shape
from cxlp.heads.fitting import KeptMaps, TrainingSet
from cxlp.heads.local import LocalHead
from cxlp.heads.normalisation import Normalise
from cxlp.heads.projection import random_places
from cxlp.heads.views import Views
from cxlp.utils.distributed import all_sum, from_rank_zero, on_rank_zero
from cxlp.utils.errors import CxlpError


class Codebook(LocalHead):
    """Base class of Fisher vectors, with a model of K atoms that is fitted to local features.

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        atoms: Size K of the codebook.
        normalise: The normalisation that follows the encoding.
        layers: The layer that is encoded; ``None``: the backbone's last layer.
        views: The views of an image whose local features are encoded together.
    """

    needs_fit: ClassVar[bool] = True
    explanation_obstacle = "its generative model is not linear, so its vector is not a sum over places"

    def __init__(
        self, pca_dim: int | None, atoms: int, normalise: Normalise, layers: Sequence[str] | None, views: Views
    ) -> None:
        super().__init__(pca_dim, normalise, layers, views)
        if atoms < 2:
            raise CxlpError(f"atoms is {atoms}: it must be 2 or more")
        self.atoms = atoms

    def learn(self, x: Tensor) -> None:
        """Fit the model to projected local features ``(n, p)`` of the training images."""
        raise NotImplementedError

    def check_enough(self, n: int) -> None:
        """Check that there are at least K local features.

        Raises:
            CxlpError: If there are fewer.
        """
        if n < self.atoms:
            raise CxlpError(
                f"atoms is {self.atoms}, but the training images have only {n} local features: lower atoms to {n} or "
                "fewer"
            )

    def check_training(self, data: TrainingSet) -> None:
        """Check on all ranks, before the pass over the images, that there are enough local features."""
        self.check_enough(data.images * min(self.local_features, data.per_image))

    def learn_from(self, kept: KeptMaps, data: TrainingSet) -> None:
        """Fit the model on rank 0 to projected local features at random places of the images of all ranks."""
        with kept.measure("codebook"):
            k = min(self.local_features, data.per_image)
            found = torch.zeros(data.images, k, self.dim)
            for x, positions in self.projected(kept):
                places = random_places(x.shape[1], k, positions).to(x.device).unsqueeze(2)
                found[positions] = torch.take_along_dim(x, places, dim=1).cpu()
            vectors = all_sum(found).flatten(0, 1)  # (n k, p)
            on_rank_zero(lambda: self.learn(vectors))
            for value in self.buffers():
                if value.is_floating_point():  # not the buffer "fitted", which each rank sets itself
                    from_rank_zero(value)


class FisherVector(Codebook):
    """Fisher vector of a Gaussian mixture with diagonal covariances (Sanchez et al., IJCV 2013).

    With the posterior probability ``g_ik`` of component k (weight ``w_k``, mean ``m_k``, standard deviations ``s_k``)
    for feature ``x_i``, the vector consists of ::

        G_m,k = 1 / (N sqrt(w_k))   sum_i g_ik (x_i - m_k) / s_k
        G_s,k = 1 / (N sqrt(2 w_k)) sum_i g_ik (((x_i - m_k) / s_k)^2 - 1)

    and has length ``2 K p``. Three products with ``(K, p)`` matrices compute it; no ``(N, K, p)`` array is stored.

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        atoms: Number K of components.
        zscore, channel_l2, sign, sqrt, l2: The normalisation, see :class:`~cxlp.heads.normalisation.Normalise`. Each
            component is a pooling channel.
        layers: The layer whose places are the local features; ``None``: the backbone's last layer.
        views: The views of an image whose local features are encoded together.

    Example:
        >>> head = FisherVector(pca_dim=4, atoms=3).connect((8, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13)).shape
        torch.Size([2, 24])
    """

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def __init__(
        self,
        pca_dim: int | None = 500,
        atoms: int = 100,
        zscore: bool = False,
        channel_l2: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        normalise = Normalise(zscore=zscore, channel_l2=channel_l2, sign=sign, sqrt=sqrt, l2=l2)
        super().__init__(pca_dim, atoms, normalise, layers, views)
        self.zscore, self.channel_l2, self.sign, self.sqrt, self.l2 = zscore, channel_l2, sign, sqrt, l2

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projection and a mixture of K equal standard normal distributions."""
        super().build(shapes)
        self.register_buffer("weights", torch.full((self.atoms,), 1 / self.atoms))
        self.register_buffer("means", torch.zeros(self.atoms, self.dim))
        self.register_buffer("deviations", torch.ones(self.atoms, self.dim))
        self.out_features = 2 * self.atoms * self.dim

    def posteriors(self, x: Tensor) -> Tensor:
        """Compute the posterior probabilities ``g``: ``(B, N, p) -> (B, N, K)``."""
        weights, means, deviations = (b.to(x.dtype) for b in (self.weights, self.means, self.deviations))
        precisions = deviations.pow(-2)  # (K, p)
        # log w - sum log s - 1/2 sum ((x - m) / s)^2, expanded into products, without terms that do not depend on k.
        constant = weights.log() - deviations.log().sum(dim=1) - 0.5 * (means**2 * precisions).sum(dim=1)
        logits = x @ (means * precisions).T - 0.5 * (x**2) @ precisions.T + constant
        return logits.softmax(dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """Compute the Fisher vector: ``(B, N, p) -> (B, K, 2 p)``."""
        g = self.posteriors(x).transpose(1, 2)  # (B, K, N)
        total = g.sum(dim=2, keepdim=True)  # (B, K, 1)
        first, second = g @ x, g @ x**2  # (B, K, p)
        w, m, s = (b.to(x.dtype) for b in (self.weights, self.means, self.deviations))
        by_mean = (first - total * m) / s
        by_deviation = (second - 2 * first * m + total * m**2) / s**2 - total
        scale = 1 / (x.shape[1] * w.sqrt())[:, None]  # (K, 1)
        return torch.cat([by_mean * scale, by_deviation * scale / math.sqrt(2)], dim=2)

    def learn(self, x: Tensor) -> None:
        """Fit the mixture by expectation maximisation, initialised by k-means (scikit-learn)."""
        from sklearn.mixture import GaussianMixture

        self.check_enough(len(x))
        # In float64: covariances from float32 sums can be negative, which is an error in scikit-learn.
        data = x.double().cpu().numpy()
        floor = 1e-3 * float(data.var(axis=0).mean())
        mixture = GaussianMixture(
            self.atoms, covariance_type="diag", reg_covar=max(floor, 1e-12), max_iter=50, tol=1e-3, random_state=0
        ).fit(data)
        self.weights.copy_(torch.from_numpy(mixture.weights_))
        self.means.copy_(torch.from_numpy(mixture.means_))
        self.deviations.copy_(torch.from_numpy(np.sqrt(mixture.covariances_)))
        self.mark_fitted()


class SparseFisherVector(Codebook):
    """Sparse-coding Fisher vector (Liu et al., NIPS 2014, arXiv 1411.6406), as used in R-CNN SCFV.

    The model of a feature is ``x ~ N(B u, I)`` with a Laplacian prior on the code u. With the codes ::

        u_i = argmin_u 1/2 |x_i - B u|^2 + sparsity |u|_1,

    the gradient with respect to the dictionary B, whose atoms have unit length, is ::

        G_k = sum_i u_ik (x_i - B u_i).

    The vector has length ``K p``. Features are divided by the root mean square norm of the training features, so that
    the same ``sparsity`` suits all layers. FISTA computes the codes of all features of a batch at once.

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        atoms: Number K of dictionary atoms.
        sparsity: Weight of the L1 norm.
        zscore, channel_l2, sign, sqrt, l2: The normalisation, see :class:`~cxlp.heads.normalisation.Normalise`. Each
            atom is a pooling channel.
        layers: The layer whose places are the local features; ``None``: the backbone's last layer.
        views: The views of an image whose local features are encoded together.

    Attributes:
        iterations: Number of FISTA steps.

    Example:
        >>> head = SparseFisherVector(pca_dim=4, atoms=3).connect((8, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13)).shape
        torch.Size([2, 12])
    """

    onnx_obstacle: ClassVar[str | None] = "its sparse coding computes eigenvalues, for which ONNX has no operator"

    dictionary: Tensor
    unit: Tensor

    def __init__(
        self,
        pca_dim: int | None = 500,
        atoms: int = 100,
        sparsity: float = 0.1,
        zscore: bool = False,
        channel_l2: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        normalise = Normalise(zscore=zscore, channel_l2=channel_l2, sign=sign, sqrt=sqrt, l2=l2)
        super().__init__(pca_dim, atoms, normalise, layers, views)
        if not sparsity > 0:
            raise CxlpError(f"sparsity is {sparsity}: it must be greater than 0")
        self.sparsity = sparsity
        self.zscore, self.channel_l2, self.sign, self.sqrt, self.l2 = zscore, channel_l2, sign, sqrt, l2
        self.iterations = 100

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projection and a dictionary of zeros."""
        super().build(shapes)
        self.register_buffer("dictionary", torch.zeros(self.atoms, self.dim))
        self.register_buffer("unit", torch.ones(()))
        self.out_features = self.atoms * self.dim

    def codes(self, x: Tensor) -> Tensor:
        """Compute sparse codes: ``(..., p) -> (..., K)``, in units of ``unit``.

        FISTA (Beck and Teboulle, 2009): gradient steps of size 1 / L with momentum, each followed by soft thresholding.
        """
        dictionary = self.dictionary.to(x.dtype)
        inner = dictionary @ dictionary.T  # (K, K)
        start = (x / self.unit) @ dictionary.T  # (..., K)
        step = 1 / torch.linalg.eigvalsh(inner)[-1].clamp_min(1e-6)
        shrink = self.sparsity * step
        code = ahead = torch.zeros_like(start)
        t = 1.0
        for _ in range(self.iterations):
            moved = ahead - step * (ahead @ inner - start)
            following = moved - moved.clamp(-shrink, shrink)  # soft thresholding
            t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
            ahead = following + (before - 1) / t * (following - code)
            code = following
        return code

    def encode(self, x: Tensor) -> Tensor:
        """Compute the Fisher vector: ``(B, N, p) -> (B, K, p)``."""
        u = self.codes(x)  # (B, N, K)
        residual = x / self.unit - u @ self.dictionary.to(x.dtype)
        return u.transpose(1, 2) @ residual

    def learn(self, x: Tensor) -> None:
        """Learn the dictionary with an online algorithm (Mairal et al., ICML 2009; scikit-learn)."""
        from sklearn.decomposition import MiniBatchDictionaryLearning
        from sklearn.exceptions import ConvergenceWarning

        self.check_enough(len(x))
        self.unit.copy_(x.square().sum(dim=1).mean().sqrt().clamp_min(1e-12))
        learning = MiniBatchDictionaryLearning(
            self.atoms,
            alpha=self.sparsity,
            batch_size=256,
            max_iter=10,
            fit_algorithm="cd",
            transform_algorithm="lasso_cd",
            random_state=0,
        )
        with warnings.catch_warnings():
            # A few codes do not converge for early dictionaries. Later batches correct the dictionary.
            warnings.simplefilter("ignore", ConvergenceWarning)
            learning.fit((x / self.unit.to(x.device)).double().cpu().numpy())
        self.dictionary.copy_(torch.from_numpy(learning.components_))
        self.mark_fitted()
