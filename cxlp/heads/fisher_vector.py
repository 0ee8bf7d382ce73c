"""Fisher vectors of local features: of a Gaussian mixture, and of sparse coding; in pure torch.

Both describe an image by the gradient of the log-likelihood of its local features under a generative model
that was fitted to features of the training images.
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from cxlp.heads.encoding import LocalEncoding
from cxlp.utils.errors import CxlpError


class Codebook(LocalEncoding):
    """What the two Fisher vectors share: a model of local features with K atoms, which is fitted, not trained.

    Args:
        channels: Channels C of the map whose places are the local features.
        pca_dim: Size p of a projected local feature.
        atoms: Size K of the codebook.
        normalise: What follows.
        blocks: Vectors of length p per atom in the result.
    """

    def __init__(
        self, channels: int, pca_dim: int | None, atoms: int, normalise: nn.Module | None, blocks: int
    ) -> None:
        super().__init__(channels, pca_dim, normalise)
        if atoms < 2:
            raise CxlpError(f"model.network.pooling.atoms is {atoms}: a codebook has 2 or more")
        if pca_dim is None:
            raise CxlpError(
                f"model.network.pooling.pca_dim is null, but a Fisher vector needs a PCA: choose 1 to {channels}"
            )
        self.atoms = atoms
        self.out_features = blocks * atoms * self.dim

    def learn(self, x: Tensor, seed: int = 0) -> None:
        """Fit the model to projected local features ``(n, p)`` of the training images."""
        raise NotImplementedError

    def check_enough(self, n: int) -> None:
        """Refuse to learn from fewer than K local features.

        Raises:
            CxlpError: Says how many there are.
        """
        if n < self.atoms:
            raise CxlpError(
                f"a codebook of {self.atoms} atoms needs as many local features, the training images give {n}: "
                "lower model.network.pooling.atoms"
            )


class GaussianFisherVector(Codebook):
    """Fisher vector of a Gaussian mixture with diagonal covariances (Sanchez et al., IJCV 2013).

    With posteriors ``g_ik`` of component k (weight ``w_k``, mean ``m_k``, deviations ``s_k``) for feature ``x_i``,

        G_m,k = 1 / (N sqrt(w_k))   sum_i g_ik (x_i - m_k) / s_k
        G_s,k = 1 / (N sqrt(2 w_k)) sum_i g_ik (((x_i - m_k) / s_k)^2 - 1)

    Length ``2 K p``. By three products with ``(K, p)`` matrices, never an ``(N, K, p)`` array.

    Args:
        channels: Channels C of the map.
        pca_dim: Size p of a projected local feature.
        atoms: Number K of components.
        normalise: What follows; signed square root and L2 if not given.
    """

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def __init__(self, channels: int, pca_dim: int | None, atoms: int = 64, normalise: nn.Module | None = None) -> None:
        super().__init__(channels, pca_dim, atoms, normalise, blocks=2)
        self.register_buffer("weights", torch.full((atoms,), 1 / atoms))
        self.register_buffer("means", torch.zeros(atoms, self.dim))
        self.register_buffer("deviations", torch.ones(atoms, self.dim))

    def posteriors(self, x: Tensor) -> Tensor:
        """Compute ``g``: ``(B, N, p) -> (B, N, K)``."""
        weights, means, deviations = (b.to(x.dtype) for b in (self.weights, self.means, self.deviations))
        precisions = deviations.pow(-2)  # (K, p)
        # log w - sum log s - 1/2 sum ((x - m) / s)^2, expanded into products; what does not depend on k cancels.
        constant = weights.log() - deviations.log().sum(dim=1) - 0.5 * (means**2 * precisions).sum(dim=1)
        logits = x @ (means * precisions).T - 0.5 * (x**2) @ precisions.T + constant
        return logits.softmax(dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """See the class: ``(B, N, p) -> (B, K, 2 p)``."""
        g = self.posteriors(x).transpose(1, 2)  # (B, K, N)
        total = g.sum(dim=2, keepdim=True)  # (B, K, 1)
        first, second = g @ x, g @ x**2  # (B, K, p)
        w, m, s = (b.to(x.dtype) for b in (self.weights, self.means, self.deviations))
        by_mean = (first - total * m) / s
        by_deviation = (second - 2 * first * m + total * m**2) / s**2 - total
        scale = 1 / (x.shape[1] * w.sqrt())[:, None]  # (K, 1)
        return torch.cat([by_mean * scale, by_deviation * scale / math.sqrt(2)], dim=2)

    def learn(self, x: Tensor, seed: int = 0) -> None:
        """Fit the mixture by expectation maximisation (scikit-learn), from k-means."""
        from sklearn.mixture import GaussianMixture

        self.check_enough(len(x))
        # In float64: covariances of float32 sums can come out negative, which scikit-learn refuses.
        data = x.double().cpu().numpy()
        floor = 1e-3 * float(data.var(axis=0).mean())
        mixture = GaussianMixture(
            self.atoms, covariance_type="diag", reg_covar=max(floor, 1e-12), max_iter=50, tol=1e-3, random_state=seed
        ).fit(data)
        self.weights.copy_(torch.from_numpy(mixture.weights_))
        self.means.copy_(torch.from_numpy(mixture.means_))
        self.deviations.copy_(torch.from_numpy(np.sqrt(mixture.covariances_)))


class SparseFisherVector(Codebook):
    """Sparse-coding Fisher vector (Liu et al., NIPS 2014, arXiv 1411.6406), of R-CNN SCFV.

    A feature is ``x ~ N(B u, I)`` with a Laplacian prior on the code u. With

        u_i = argmin_u 1/2 |x_i - B u|^2 + sparsity |u|_1,

    the gradient with respect to the dictionary B (atoms of unit length) is

        G_k = sum_i u_ik (x_i - B u_i).

    Length ``K p``. Features are measured in units of the training features' root mean square norm, so that one
    ``sparsity`` suits all layers. Codes are found by FISTA, for all features of a batch at once.

    Args:
        channels: Channels C of the map.
        pca_dim: Size p of a projected local feature.
        atoms: Number K of dictionary atoms.
        normalise: What follows; signed square root and L2 if not given.
        sparsity: Weight of the L1 norm.
        iterations: Steps of FISTA.
    """

    dictionary: Tensor
    unit: Tensor

    def __init__(
        self,
        channels: int,
        pca_dim: int | None,
        atoms: int = 100,
        normalise: nn.Module | None = None,
        sparsity: float = 0.1,
        iterations: int = 100,
    ) -> None:
        super().__init__(channels, pca_dim, atoms, normalise, blocks=1)
        if not sparsity > 0:
            raise CxlpError(f"model.network.pooling.sparsity is {sparsity}: it must be greater than 0")
        self.sparsity, self.iterations = sparsity, iterations
        self.register_buffer("dictionary", torch.zeros(atoms, self.dim))
        self.register_buffer("unit", torch.ones(()))

    def codes(self, x: Tensor) -> Tensor:
        """Find sparse codes: ``(..., p) -> (..., K)``, in units of ``unit``.

        FISTA (Beck and Teboulle, 2009): gradient steps of length 1 / L, each followed by a shrinkage, with momentum.
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
            following = moved - moved.clamp(-shrink, shrink)  # shrinks towards 0
            t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
            ahead = following + (before - 1) / t * (following - code)
            code = following
        return code

    def encode(self, x: Tensor) -> Tensor:
        """See the class: ``(B, N, p) -> (B, K, p)``."""
        u = self.codes(x)  # (B, N, K)
        residual = x / self.unit - u @ self.dictionary.to(x.dtype)
        return u.transpose(1, 2) @ residual

    def learn(self, x: Tensor, seed: int = 0) -> None:
        """Learn the dictionary online (Mairal et al., ICML 2009; scikit-learn)."""
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
            random_state=seed,
        )
        with warnings.catch_warnings():
            # A few codes of early, unfinished dictionaries: later batches make up for them.
            warnings.simplefilter("ignore", ConvergenceWarning)
            learning.fit((x / self.unit.to(x.device)).double().cpu().numpy())
        self.dictionary.copy_(torch.from_numpy(learning.components_))
