"""Tests of ``cxlp.runs``."""
