"""Studies of several runs: series of seeds, comparisons of systems, and their tables."""
