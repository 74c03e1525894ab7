"""The recipe of a picture: what is asked for, what is recorded, and how both are written into picture files.

Open `recipe.py` first; `fields.py` and `sampler_settings.py` hold its fields, `infotext.py` and `metadata.py` the
text inside pictures. Nothing here imports torch.
"""
