"""A fitted network elsewhere: prediction in Python, and export to other runtimes."""
