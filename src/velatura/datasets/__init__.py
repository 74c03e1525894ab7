"""Folders of pictures for training: read, check, crop, caption and review them.

Open `folder.py` first: `read_dataset` says how a folder is read. Captions come from `read_captions.py` and
`name_captions.py`, the models that write them are in `captioners/`.
"""
