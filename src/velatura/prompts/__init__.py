"""Prompt language of AUTOMATIC1111's web UI: emphasis, tags, AND, prompt editing, styles, prompt matrix, X/Y/Z
values.

prompt.py parses a whole prompt and is the file to open first; tags.py parses tags, strengths.py their numbers,
emphasis.py brackets. Nothing here imports torch.
"""
