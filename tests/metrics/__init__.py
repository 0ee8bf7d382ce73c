"""Tests of cxlp.metrics.classification."""
