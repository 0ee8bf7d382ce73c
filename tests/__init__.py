"""The tests, file by file as in ``cxlp``."""
