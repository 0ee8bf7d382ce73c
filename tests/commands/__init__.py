"""Tests of ``cxlp.commands``."""
