"""The network of backbone, heads and classifier, and its checkpoints."""
