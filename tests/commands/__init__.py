"""What ``python -m cxlp`` can do, file by file."""
