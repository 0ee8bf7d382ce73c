"""Several runs: seeds, comparisons of systems, their tables."""
