"""Hypernetworks in files of other programs: A1111's .pt of every version, its optimizer states (.optim), flat
safetensors, and compositions (.hns) of a web UI extension. velatura's own format is `velatura.formats.native`.

Open `a1111` first, then `a1111_fields`, which turns a file's settings into a card.
"""
