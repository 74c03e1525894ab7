"""Frozen Stable Diffusion that overlays are attached to: UNet, VAE, CLIP text encoders and noise schedule.

base.py holds Base and is the file to open first; text_encoder.py encodes prompts, families.py lists SD1, SD2 and
SDXL. Nothing here knows overlays, files or samplers.
"""
