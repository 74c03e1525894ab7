"""Readers of what other programs write into pictures; each gives infotext, which the recipe is read from.

Open `find_infotext.py` first: it decides which reader a picture needs. `settings.py` is what all readers share: it
remembers which settings were read, and names the others in one warning.
"""
