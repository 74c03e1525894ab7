"""The prompt language of AUTOMATIC1111's web UI: emphasis, tags, AND, prompt editing, styles, prompt matrix, X/Y/Z
values.

prompt.py parses a whole prompt and is the file to open first; grammar.py holds tags and emphasis, strengths.py a
tag's numbers. Nothing here imports torch.
"""
