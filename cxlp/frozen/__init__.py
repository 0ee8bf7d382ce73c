"""Fitting without gradients, as in the paper: streamed PCA, features on disk, Gram matrix, SVMs."""
