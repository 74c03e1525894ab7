"""Commands that measure: `measure` two folders of pictures, `tune` the strength of an overlay, `compare` kinds.

measure.py is the file to open first.
"""
