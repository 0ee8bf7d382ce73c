"""Tests of ``cxlp.backbones``."""
