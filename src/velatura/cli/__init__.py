"""The command line: `velatura`, or `python -m velatura`."""
