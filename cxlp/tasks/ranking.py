"""The ranking of pairs of a network's layers, in one pass over some training images."""

from typing import Any, ClassVar

from cxlp.frozen.fit import FrozenFit
from cxlp.frozen.pairs import CONFIG, PairFit, RankedPair
from cxlp.models.network import Network
from cxlp.tasks.frozen import Frozen


class LayerRanking(Frozen):
    """Ranks pairs of layers by the cross-validated quality of cross-layer pooling, see :mod:`cxlp.frozen.pairs`.

    Args:
        network: Built by :func:`~cxlp.frozen.pairs.ranking_network`.

    Attributes:
        ranked: After the fit, the pairs, best first, the same on each rank.

    Example:
        ``pl.Trainer(max_epochs=1).fit(LayerRanking(network), loader)`` with any loader of ``(image, label)``.
    """

    fit_class: ClassVar[type[FrozenFit]] = PairFit

    def __init__(self, network: Network) -> None:
        super().__init__(network, CONFIG)
        self.ranked: list[RankedPair] = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (Lightning's types)
        """Rank after the last batch."""
        fit = self._fit
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch and isinstance(fit, PairFit):
            self.ranked = self.trainer.strategy.broadcast(fit.ranked)  # GPUs of other kinds may round differently
