"""Merge two or three checkpoints into one, tensor by tensor.

merge.py is the file to open first; modes.py holds the formulas (weighted sum, add difference, slerp, TIES, DARE),
options.py what a caller may choose. lazy_merge.py computes each tensor when it is written, and retention.py measures
how much of each parent is left.
"""
