"""The cross-validated metric of a run, which selects systems without using the test images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cross_validated(found: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of the training images, each scored by SVMs that were fitted without it.

    Args:
        found: The content of ``metrics.json``.
        metric: ``accuracy`` or ``mAP``.

    Returns:
        The metric in [0, 1]; ``None`` if the tested network does not come from the frozen fit, or if its heads were
        fitted to the labels of all training images.
    """
    tested, epoch = Path(str(found.get("tested"))).name, found.get("epoch")
    is_frozen = tested == "frozen.ckpt" or (tested == "final weights" and epoch == 0)
    value = found.get("metrics", {}).get(f"frozen/cv_{metric}")
    return float(value) if is_frozen and value is not None and not found.get("heads learnt from labels") else None
