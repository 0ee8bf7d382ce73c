"""Tests of ``cxlp.studies``."""
