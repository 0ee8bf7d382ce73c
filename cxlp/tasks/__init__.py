"""The LightningModules of the two modes, and what they share."""

from cxlp.tasks.finetune import FineTune
from cxlp.tasks.frozen import Frozen

__all__ = ["FineTune", "Frozen"]
