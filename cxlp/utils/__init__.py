"""Utilities for all other packages of cxlp, on which these utilities do not depend."""
