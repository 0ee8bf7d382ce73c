"""Tests of cxlp.backbones.backbone."""
