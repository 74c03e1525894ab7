"""The recipe of a picture: its fields, and how they are written into picture files and read from them.

Open `recipe.py` first. `fields.py` and `sampler_settings.py` define its fields, `infotext.py` and `metadata.py` the
text inside pictures. Nothing here imports torch.
"""
