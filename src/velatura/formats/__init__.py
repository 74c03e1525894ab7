"""How bases and overlays look on disk, in every format that velatura opens and saves.

Folders hold the formats by what they store; `native` is velatura's own format. `dialects` is the table of them all.
Open `open` first, then `dialects`.
"""
