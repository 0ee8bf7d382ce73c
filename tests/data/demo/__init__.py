"""Tests of ``cxlp.data.demo``."""
