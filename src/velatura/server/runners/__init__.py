"""One function for each kind of job: it calls what the command line calls, and reports to its `JobContext`.

paint.py is the file to open first. These modules import torch; only the workers import them.
"""
