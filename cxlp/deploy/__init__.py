"""Use of a fitted network: prediction in Python, and export to other runtimes."""
