"""The names of the paper's systems and of the baselines, available without importing torch."""

from collections.abc import Sequence

from cxlp.utils.errors import CxlpError, did_you_mean

#: For some backbones, the pair of layers one step below the usual pair.
LOWER_PAIRS: dict[str, tuple[str, str]] = {
    "caffenet": ("conv3", "conv4"),
    "squeezenet1_0": ("features.9", "features.10"),
    "efficientnet_lite0": ("blocks.5.3", "blocks.6.0"),
    "vgg16": ("features.24", "features.26"),
}


def pair_names(backbone: str) -> tuple[str, str]:
    """Return the names of a backbone's usual pair of layers and of the pair below; for CaffeNet, the paper's names."""
    return ("CL-45", "CL-34") if backbone == "caffenet" else ("CL", "CL-lower")


def other_size(size: int) -> int:
    """Return the sub-array side r of the system that varies it: 1x1 or 3x3, whichever the others do not use."""
    return 3 if size == 1 else 1


def system_names(backbone: str, size: int) -> list[str]:
    """Return the names of the systems of :func:`cxlp.studies.systems.systems`, in its order.

    Args:
        backbone: The backbone's name.
        size: Side r of the sub-arrays that are local features.
    """
    pair, lower = pair_names(backbone)
    other = other_size(size)
    return [
        "CNN-Global", "CNN-Jitter", "R-CNN FV", "R-CNN SCFV", "regions + trained guide",
        *([lower, f"{pair} + {lower}"] if backbone in LOWER_PAIRS else []),
        pair, f"{pair}, {other}x{other}", f"{pair}, signs", f"{pair}, low rank", f"{pair}, compact",
        f"{pair}, matrix root", f"{pair}, best", f"{pair}, derived", f"{pair}F", f"{pair}C",
        "CL + CNN-Global", "CL + CNN-Jitter", "average", "average, root", "bilinear", "bilinear, compact", "iSQRT-COV",
    ]  # fmt: skip


def check_names(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Check that all systems are known.

    Raises:
        CxlpError: If one is unknown; the message suggests known names.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise CxlpError(f"unknown system {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
