"""The study "which kind do I need": every kind trained on the same pictures under one budget, and judged alike.

study.py is the file to open first; trials.py trains and judges one overlay, results.py holds what was found and which
kind is recommended, and report.py writes the page.
"""
