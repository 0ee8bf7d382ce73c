"""The LightningModules: what both modes share, and the two of them."""

from cxlp.tasks.finetune import FineTune
from cxlp.tasks.frozen import Frozen

__all__ = ["FineTune", "Frozen"]
