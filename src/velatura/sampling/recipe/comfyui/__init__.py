"""Translate the graphs of ComfyUI, which it writes into its pictures, into recipes.

Open `read.py` first: it finds the samplers (`passes.py`, `samplers.py`), the prompts (`conditioning.py`, `prompts.py`)
and the overlays (`overlays.py`). `nodes.py` lists the nodes that are known, `graph.py` walks over their links.
"""

from velatura.sampling.recipe.comfyui.read import infotext_from_comfyui

__all__ = ["infotext_from_comfyui"]
