"""The LightningModules of the two modes, frozen and fine-tuning, and their common base."""

from cxlp.tasks.finetune import FineTune
from cxlp.tasks.frozen import Frozen

__all__ = ["FineTune", "Frozen"]
