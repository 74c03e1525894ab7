"""Commands that measure: `measure` two folders of pictures, and `tune` the strength of an overlay.

measure.py is the file to open first.
"""
