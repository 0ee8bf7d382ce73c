"""Tests of cxlp.deploy."""
