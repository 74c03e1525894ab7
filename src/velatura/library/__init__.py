"""Folders of weights: find a base or an overlay by what it is called, and know what all the others are."""

from velatura.library.library import Library, file_entry

__all__ = ["Library", "file_entry"]
