"""Tests of ``cxlp.metrics``."""
