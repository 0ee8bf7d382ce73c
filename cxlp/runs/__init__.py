"""One run: its command line, stages, folder, loggers and results."""
