"""Tests of ``cxlp.deploy``."""
