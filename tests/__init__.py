"""Tests. Their folders and files correspond to those of ``cxlp``."""
