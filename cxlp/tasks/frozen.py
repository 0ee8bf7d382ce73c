"""The frozen mode: one pass, no gradients."""

from cxlp.frozen.fit import FrozenConfig
from cxlp.models.network import NetworkConfig
from cxlp.tasks.base import Batch, CrossLayerTask, set_requires_grad


class Frozen(CrossLayerTask):
    """Cross-layer pooling as in the paper: PCA, pooled features, SVMs on a precomputed kernel.

    Args:
        network: Backbone and pooling.
        frozen: Options of the fit.
    """

    scores_kept = True

    def __init__(self, network: NetworkConfig = NetworkConfig(), frozen: FrozenConfig = FrozenConfig()) -> None:
        super().__init__(network, frozen)
        # There is no loss; the projection and the classifier keep requires_grad for DDP's sake.
        self.automatic_optimization = False
        set_requires_grad(self.network.backbone, False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Feed a batch to the fit."""
        self.observe(batch)
        if self.trainer.is_last_batch:
            self.trainer.should_stop = True  # one pass is the whole fit, whatever max_epochs says

    def configure_optimizers(self) -> None:
        """Nothing is optimised by gradients."""
