"""Train, apply, combine and convert overlays for Stable Diffusion: small networks attached to a frozen base.

The public names stand in `__all__`. Each is imported when it is first used, so `import velatura` does not load torch.
Start with `tiny` or `open_base`, then `generate`, `train`, `attach` and `save`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from velatura.errors import (
    AlreadyExists,
    BadArgument,
    BadDataset,
    BadFile,
    BadOverlay,
    BadPlan,
    BadPrompt,
    BadRecipe,
    BadSettings,
    BadStrength,
    DownloadFailed,
    MissingCaption,
    NanLatents,
    NoEffect,
    ProcessFailed,
    TrainingDiverged,
    UnknownName,
    UnsupportedBase,
    VelaturaError,
    VelaturaWarning,
    WrongBase,
)
from velatura.tiny import tiny, tiny_pictures  # at once: the module tiny would hide the function of that name

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.card import Card
    from velatura.compare.grid import grid
    from velatura.compare.measure import Measurement, measure
    from velatura.compare.tune import Tuning, tune
    from velatura.datasets.folder import read_dataset
    from velatura.datasets.loss_weights import loss_weights
    from velatura.datasets.templates import CaptionTemplate, template_lines
    from velatura.formats.attach import attach, attach_all
    from velatura.formats.open import open_base, open_overlay
    from velatura.formats.save import save
    from velatura.library import Library
    from velatura.merging.bake.bake import bake
    from velatura.merging.bake.report import BakeReport
    from velatura.merging.checkpoints.merge import merge
    from velatura.merging.checkpoints.options import Saving
    from velatura.merging.checkpoints.report import MergeReport
    from velatura.merging.checkpoints.retention import measure_retention
    from velatura.merging.lora.combine import CombineReport, combine
    from velatura.merging.lora.extract import ExtractReport, extract
    from velatura.overlays.aesthetic import Aesthetic
    from velatura.overlays.attach import Attachment, AttachSpec
    from velatura.overlays.composition import Composition
    from velatura.overlays.difference import Difference
    from velatura.overlays.effect import Effect
    from velatura.overlays.embedding import Embedding
    from velatura.overlays.hypernetwork import Hypernetwork
    from velatura.overlays.lora.lora import Lora
    from velatura.overlays.overlay import Overlay
    from velatura.overlays.strength import Strength
    from velatura.prompts.prompt import Prompt
    from velatura.prompts.prompt_matrix import PromptMatrix
    from velatura.sampling.generate import Picture, generate, generate_many, generate_stream
    from velatura.sampling.masks import InitImage
    from velatura.sampling.recipe.recipe import Recipe
    from velatura.studies.results import StudyResults
    from velatura.studies.study import study
    from velatura.studies.sweep import sweep
    from velatura.studies.sweep_results import SweepResults
    from velatura.training.kinds.aesthetic import aesthetic_from
    from velatura.training.kinds.class_images import make_class_pictures
    from velatura.training.kinds.dreambooth import save_dreambooth
    from velatura.training.plan import Plan
    from velatura.training.run.report import Run, Stage, Step
    from velatura.training.run.verdict import Verdict
    from velatura.training.train import resume, train

__all__ = [
    "Aesthetic",
    "AlreadyExists",
    "AttachSpec",
    "Attachment",
    "BadArgument",
    "BadDataset",
    "BadFile",
    "BadOverlay",
    "BadPlan",
    "BadPrompt",
    "BadRecipe",
    "BadSettings",
    "BadStrength",
    "BakeReport",
    "Base",
    "CaptionTemplate",
    "Card",
    "CombineReport",
    "Composition",
    "Difference",
    "DownloadFailed",
    "Effect",
    "Embedding",
    "ExtractReport",
    "Hypernetwork",
    "InitImage",
    "Library",
    "Lora",
    "Measurement",
    "MergeReport",
    "MissingCaption",
    "NanLatents",
    "NoEffect",
    "Overlay",
    "Picture",
    "Plan",
    "ProcessFailed",
    "Prompt",
    "PromptMatrix",
    "Recipe",
    "Run",
    "Saving",
    "Stage",
    "Step",
    "Strength",
    "StudyResults",
    "SweepResults",
    "TrainingDiverged",
    "Tuning",
    "UnknownName",
    "UnsupportedBase",
    "VelaturaError",
    "VelaturaWarning",
    "Verdict",
    "WrongBase",
    "aesthetic_from",
    "attach",
    "attach_all",
    "bake",
    "combine",
    "extract",
    "generate",
    "generate_many",
    "generate_stream",
    "grid",
    "loss_weights",
    "make_class_pictures",
    "measure",
    "measure_retention",
    "merge",
    "open_base",
    "open_overlay",
    "read_dataset",
    "resume",
    "save",
    "save_dreambooth",
    "study",
    "sweep",
    "template_lines",
    "tiny",
    "tiny_pictures",
    "train",
    "tune",
]

# where each name that is imported on first use is defined; a test compares it with the imports above
_MODULES = {
    "Aesthetic": "overlays.aesthetic",
    "AttachSpec": "overlays.attach",
    "Attachment": "overlays.attach",
    "BakeReport": "merging.bake.report",
    "Base": "base.base",
    "CaptionTemplate": "datasets.templates",
    "Card": "card",
    "CombineReport": "merging.lora.combine",
    "Composition": "overlays.composition",
    "Difference": "overlays.difference",
    "Effect": "overlays.effect",
    "Embedding": "overlays.embedding",
    "ExtractReport": "merging.lora.extract",
    "Hypernetwork": "overlays.hypernetwork",
    "InitImage": "sampling.masks",
    "Library": "library",
    "Lora": "overlays.lora.lora",
    "Measurement": "compare.measure",
    "MergeReport": "merging.checkpoints.report",
    "Overlay": "overlays.overlay",
    "Picture": "sampling.generate",
    "Plan": "training.plan",
    "Prompt": "prompts.prompt",
    "PromptMatrix": "prompts.prompt_matrix",
    "Recipe": "sampling.recipe.recipe",
    "Run": "training.run.report",
    "Saving": "merging.checkpoints.options",
    "Stage": "training.run.report",
    "Step": "training.run.report",
    "Strength": "overlays.strength",
    "StudyResults": "studies.results",
    "SweepResults": "studies.sweep_results",
    "Tuning": "compare.tune",
    "Verdict": "training.run.verdict",
    "aesthetic_from": "training.kinds.aesthetic",
    "attach": "formats.attach",
    "attach_all": "formats.attach",
    "bake": "merging.bake.bake",
    "combine": "merging.lora.combine",
    "extract": "merging.lora.extract",
    "generate": "sampling.generate",
    "generate_many": "sampling.generate",
    "generate_stream": "sampling.generate",
    "grid": "compare.grid",
    "loss_weights": "datasets.loss_weights",
    "make_class_pictures": "training.kinds.class_images",
    "measure": "compare.measure",
    "measure_retention": "merging.checkpoints.retention",
    "merge": "merging.checkpoints.merge",
    "open_base": "formats.open",
    "open_overlay": "formats.open",
    "read_dataset": "datasets.folder",
    "resume": "training.train",
    "save": "formats.save",
    "save_dreambooth": "training.kinds.dreambooth",
    "study": "studies.study",
    "sweep": "studies.sweep",
    "template_lines": "datasets.templates",
    "train": "training.train",
    "tune": "compare.tune",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("velatura")
    if name not in _MODULES:
        raise AttributeError(f"module 'velatura' has no attribute {name!r}")
    from velatura.imports import pause_garbage_collection

    with pause_garbage_collection():
        value = getattr(import_module(f"velatura.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
