"""Write new weights from models and overlays: merged checkpoints, baked bases, extracted and combined LoRAs.

checkpoints/merge.py merges checkpoints, bake/bake.py bakes overlays into a base, lora/extract.py extracts a LoRA:
open the one you need first. Nothing here changes the models that it reads; each command also returns or writes a
report.
"""
