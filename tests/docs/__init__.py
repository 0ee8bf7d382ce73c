"""Tests of cxlp.docs."""
