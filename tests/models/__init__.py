"""Tests of ``cxlp.models``."""
