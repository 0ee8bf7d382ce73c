"""Tests of cxlp.reports.figures."""
