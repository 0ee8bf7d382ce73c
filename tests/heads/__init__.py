"""Tests of ``cxlp.heads``."""
