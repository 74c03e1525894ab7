"""velatura: small networks laid over a frozen Stable Diffusion. The public names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from velatura.tiny import tiny, tiny_pictures  # at once: the module tiny would hide the function of that name

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.card import Card
    from velatura.compare.grid import grid
    from velatura.errors import VelaturaError, VelaturaWarning
    from velatura.formats import open_base, open_overlay, save
    from velatura.library import Library
    from velatura.merging.bake.bake import bake
    from velatura.merging.bake.report import BakeReport
    from velatura.merging.checkpoints.merge import merge
    from velatura.merging.checkpoints.report import MergeReport
    from velatura.merging.lora.extract import extract
    from velatura.overlays.aesthetic import Aesthetic
    from velatura.overlays.attach import Attachment, AttachSpec, attach, attach_all
    from velatura.overlays.difference import Difference
    from velatura.overlays.effect import Effect
    from velatura.overlays.embedding import Embedding
    from velatura.overlays.hypernetwork import Hypernetwork
    from velatura.overlays.lora.lora import Lora
    from velatura.overlays.overlay import Overlay
    from velatura.overlays.strength import Strength
    from velatura.sampling.generate import Picture, generate, generate_many, generate_stream
    from velatura.sampling.recipe.recipe import Recipe
    from velatura.training.plan import Plan
    from velatura.training.train import resume, train

__all__ = [
    "Aesthetic",
    "AttachSpec",
    "Attachment",
    "BakeReport",
    "Base",
    "Card",
    "Difference",
    "Effect",
    "Embedding",
    "Hypernetwork",
    "Library",
    "Lora",
    "MergeReport",
    "Overlay",
    "Picture",
    "Plan",
    "Recipe",
    "Strength",
    "VelaturaError",
    "VelaturaWarning",
    "attach",
    "attach_all",
    "bake",
    "extract",
    "generate",
    "generate_many",
    "generate_stream",
    "grid",
    "merge",
    "open_base",
    "open_overlay",
    "resume",
    "save",
    "tiny",
    "tiny_pictures",
    "train",
]

_PUBLIC_MODULES = {
    "Aesthetic": "overlays.aesthetic",
    "Attachment": "overlays.attach",
    "BakeReport": "merging.bake.report",
    "Base": "base.base",
    "Card": "card",
    "Difference": "overlays.difference",
    "Effect": "overlays.effect",
    "Embedding": "overlays.embedding",
    "Hypernetwork": "overlays.hypernetwork",
    "AttachSpec": "overlays.attach",
    "Library": "library",
    "Lora": "overlays.lora.lora",
    "MergeReport": "merging.checkpoints.report",
    "Overlay": "overlays.overlay",
    "Picture": "sampling.generate",
    "Plan": "training.plan",
    "Recipe": "sampling.recipe.recipe",
    "Strength": "overlays.strength",
    "VelaturaError": "errors",
    "VelaturaWarning": "errors",
    "attach": "overlays.attach",
    "attach_all": "overlays.attach",
    "bake": "merging.bake.bake",
    "extract": "merging.lora.extract",
    "generate": "sampling.generate",
    "generate_stream": "sampling.generate",
    "generate_many": "sampling.generate",
    "grid": "compare.grid",
    "merge": "merging.checkpoints.merge",
    "open_base": "formats",
    "open_overlay": "formats",
    "resume": "training.train",
    "save": "formats",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("velatura")
    if name not in _PUBLIC_MODULES:
        raise AttributeError(f"module 'velatura' has no attribute {name!r}")
    value = getattr(import_module(f"velatura.{_PUBLIC_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
