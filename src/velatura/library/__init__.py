"""Find checkpoints, VAEs and overlays in model folders (A1111, Forge, ComfyUI) by name, alias or hash; load them once.

library.py holds Library and is the file to open first; model_files.py walks the folders, entry.py joins all that is
known about a file. index.py caches that in SQLite, hashes.py computes AutoV1 to AutoV3, sidecars.py reads notes.
"""

from velatura.library.entry import file_entry
from velatura.library.library import Library

__all__ = ["Library", "file_entry"]
