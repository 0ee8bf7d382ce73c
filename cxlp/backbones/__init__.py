"""Backbones, which turn images into maps: networks by name, import path or module."""
