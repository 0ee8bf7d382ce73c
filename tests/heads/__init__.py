"""Tests of cxlp.heads."""
