"""Tests of ``cxlp.representations``."""
