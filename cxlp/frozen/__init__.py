"""The fit without gradients, as in the paper: streamed PCA, stored features, Gram matrix, SVMs."""
