"""Tests of ``cxlp.reports``."""
