"""Common settings of all figures, their labels, and their conversion to PNG."""

import io
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure

P = ParamSpec("P")

_SETTINGS: dict[Any, Any] = {
    "figure.constrained_layout.use": True, "font.family": "DejaVu Sans", "legend.fontsize": 8, "savefig.bbox": "tight",
    "savefig.dpi": 120, "text.parse_math": False, "xtick.labelsize": 8, "ytick.labelsize": 8,
}  # fmt: skip


def as_png(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Decorate a function that returns a figure, so that it returns the bytes of a PNG. Text is not parsed as TeX.

    Figures are created without pyplot, which looks for a display and keeps state between runs.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        picture = io.BytesIO()
        with rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a missing glyph is drawn as a box
            draw(*args, **kwargs).savefig(picture, format="png")
        return picture.getvalue()

    return drawn


def label(name: str, most: int = 28) -> str:
    """Shorten a name to one line of at most ``most`` characters, and replace characters that cannot be drawn."""
    text = " ".join(name.encode(errors="replace").decode().split())
    return text if len(text) <= most else text[: most - 1] + "…"
