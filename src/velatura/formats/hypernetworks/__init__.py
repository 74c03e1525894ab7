"""Read and write hypernetworks of other programs.

A1111's .pt of every version, flat safetensors, compositions (.hns) and A1111's optimizer files (.optim). velatura's
own format is `velatura.formats.native`. Open `a1111` first.
"""
