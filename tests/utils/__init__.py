"""Tests of ``cxlp.utils``."""
