"""Tests of cxlp.studies."""
