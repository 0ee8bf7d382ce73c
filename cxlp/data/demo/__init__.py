"""The demo: ten invented bird species, drawn on first use."""

from cxlp.data.demo.datamodule import Demo

__all__ = ["Demo"]
