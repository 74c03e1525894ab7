"""Folders of weights: find a base or an overlay by what it is called, and know what all the others are."""

from velatura.library.library import Library, entry_of

__all__ = ["Library", "entry_of"]
