"""Tests of ``cxlp.tasks``."""
