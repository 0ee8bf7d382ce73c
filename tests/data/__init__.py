"""Tests of ``cxlp.data``."""
