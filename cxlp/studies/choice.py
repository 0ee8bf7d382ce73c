"""What a choice between systems may be made by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cross_validated(found: Mapping[str, Any], metric: str) -> float | None:
    """What a choice may be made by: a metric of the training images, each scored by SVMs that have not seen it.

    Args:
        found: A ``metrics.json``.
        metric: ``accuracy`` or ``mAP``.

    Returns:
        In [0, 1]; ``None`` where the tested network is not that of the frozen fit, or its heads have learnt from the
        labels of all training images.
    """
    tested, epoch = Path(str(found.get("tested"))).name, found.get("epoch")
    is_frozen = tested == "frozen.ckpt" or (tested == "final weights" and epoch == 0)
    value = found.get("metrics", {}).get(f"frozen/cv_{metric}")
    return float(value) if is_frozen and value is not None and not found.get("heads learnt from labels") else None
