"""Merge two or three checkpoints into one, tensor by tensor.

merge.py is the file to open first; modes.py holds the formulas (weighted sum, add difference, slerp, TIES, DARE) and
options.py the choices of a caller. lazy_merge.py computes tensors on demand, retention.py measures what is left.
"""
