"""LoRA overlays: which layers of a base they change, under the names of kohya's files, with block weights.

The algorithms themselves are in overlays/deltas. Open lora.py first.
"""
