"""Metrics, their confidence intervals, and paired comparisons."""
