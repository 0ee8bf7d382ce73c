"""Tests of cxlp.data.demo.datamodule."""
