"""Tests of cxlp.utils."""
