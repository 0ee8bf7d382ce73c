"""The demo: ten invented bird species, drawn on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cxlp.data.demo.datamodule import Demo

__all__ = ["Demo"]


def __getattr__(name: str) -> object:
    """Import on first use: the drawing processes do not need torch, whose import takes seconds."""
    if name == "Demo":
        from cxlp.data.demo.datamodule import Demo

        return Demo
    raise AttributeError(f"module 'cxlp.data.demo' has no attribute {name!r}")
