"""Tests of cxlp.explain."""
