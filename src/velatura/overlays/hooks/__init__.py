"""Hooks of overlays on a frozen base: on contexts, layer outputs, full weights, token tables and text encoders.

Only seams.py registers forward hooks. Open seams.py first, then context_hooks.py (hypernetworks) and output_hooks.py
(LoRA).
"""
