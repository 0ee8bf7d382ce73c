"""Tests of ``cxlp.explain``."""
