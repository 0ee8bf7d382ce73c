"""Tests of cxlp.runs.folder."""
