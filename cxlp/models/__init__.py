"""Backbone, heads and classifier as one network, and its checkpoints."""
