"""Tests of ``cxlp.frozen``."""
