"""Tests of cxlp.models."""
