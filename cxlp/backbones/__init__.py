"""Backbones: networks by name, import path or module, cut after named layers, which turn images into maps."""
