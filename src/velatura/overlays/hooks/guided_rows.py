"""Which rows of a UNet's batch are prompts and which are negative prompts, by the model that calls the UNet."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from velatura.errors import BadStrength

# Groups of rows, of which each has one row for every picture: "n" negative prompts, "p" prompts
PLAIN = "np"
WITH_PAG = {True: "npp", False: "pp"}  # perturbed attention, with guidance and without: the last rows are perturbed
PIX2PIX = "pnn"  # diffusers' order: the prompt, the negative prompt with the image, and without it
PIX2PIX_CHANNELS = 8  # latents, and those of the image that is edited
# Words in the classes of diffusers' pipelines that call their UNet with rows in yet another order
OTHER_ORDERS = ("AttendAndExcite", "LEdits", "Panorama", "Pix2PixZero", "SAG", "Safe", "Semantic")
GUIDANCE_FLAGS = ("do_classifier_free_guidance", "do_perturbed_attention_guidance")  # of pipelines that run


class GuidedRows:
    """Order of the rows of a UNet that is called by a velatura base, a diffusers pipeline, or somebody else.

    Args:
        name: Name of the model in messages; for a pipeline its class.
        unet: The UNet.
        model: What the overlay was attached to. Only a weak reference is kept.
        is_base: True for a velatura base, which tells how many rows are negative prompts while it makes pictures.
    """

    def __init__(self, name: str, unet: nn.Module, model: object = None, *, is_base: bool = False) -> None:
        self._name = name
        self._has_image = getattr(getattr(unet, "config", None), "in_channels", None) == PIX2PIX_CHANNELS
        self._is_pipeline = not is_base and model is not None and model is not unet
        is_alone = not is_base and not self._is_pipeline
        self._attention_layers = [layer for layer in unet.modules() if hasattr(layer, "processor")] if is_alone else []
        self._batch_rows = 0
        try:
            self._model: Callable[[], object] = weakref.ref(model)
        except TypeError:  # a class with slots
            self._model = lambda: None

    @property
    def needs_batch_size(self) -> bool:
        """Return True for a pipeline with perturbed attention, whose layers get different parts of a batch."""
        return self._is_pipeline and "PAG" in self._name

    def record_batch_size(self, rows: int) -> None:
        """Record how many rows the UNet is called with."""
        self._batch_rows = rows

    def locate(self, rows: int) -> tuple[int, slice]:
        """Return the rows of the whole batch, and which of them a layer gets.

        Where attention is perturbed, diffusers' PAG computes the layer for the last group of rows by itself.

        Args:
            rows: Rows that the layer gets.
        """
        groups = self._known_groups() if self.needs_batch_size and not torch.compiler.is_compiling() else None
        if groups not in WITH_PAG.values() or rows == self._batch_rows:
            return rows, slice(None)
        perturbed_rows = self._batch_rows // len(groups or PLAIN)
        if rows == perturbed_rows:
            return self._batch_rows, slice(-rows, None)
        if rows == self._batch_rows - perturbed_rows:
            return self._batch_rows, slice(rows)
        return rows, slice(None)

    def copy_counts(self) -> tuple[int, ...]:
        """Return how often a guided batch may hold each picture.

        Diffusers' pipelines with perturbed attention (PAG) and instruct-pix2pix models have three rows for a picture.
        """
        groups = None if torch.compiler.is_compiling() else self._known_groups()
        if groups is not None:
            return (len(groups),)
        is_third_guidance = self._is_pipeline and any(word in self._name for word in ("PAG", "Pix2Pix"))
        return (2, 3) if is_third_guidance or self._has_image else (2,)

    def prompt_groups(self, side: str) -> tuple[bool, ...]:
        """Return for each group of rows of a batch whether they are prompts.

        Args:
            side: The side on which an overlay acts, for messages.

        Raises:
            BadStrength: The order of the rows is not known, or the negative prompts are missing.
        """
        groups = PLAIN if torch.compiler.is_compiling() else self._known_groups() or self._usual_groups(side)
        if "n" not in groups:
            raise BadStrength(
                f"guidance is off in {self._name}, so a batch has no negative prompts: leave out on={side!r}"
            )
        return tuple(group == "p" for group in groups)

    def _known_groups(self) -> str | None:
        """Return the groups of rows that a running pipeline has; None if nothing tells."""
        model = self._model() if self._is_pipeline else None
        if model is None or any(word in self._name for word in OTHER_ORDERS):
            return None
        is_guided, is_perturbed = (_read_flag(model, name) for name in GUIDANCE_FLAGS)
        if is_guided is None or ("PAG" in self._name and is_perturbed is None):
            return None
        if is_perturbed:
            return WITH_PAG[is_guided]
        if not is_guided:
            return "p"
        return PIX2PIX if "Pix2Pix" in self._name else PLAIN

    def _usual_groups(self, side: str) -> str:
        """Return the groups of a model that does not tell them, and refuse one that may have others."""
        if self._is_pipeline and "Pix2Pix" in self._name and "Zero" not in self._name:
            return PIX2PIX
        has_other_order = self._is_pipeline and any(word in self._name for word in ("PAG", *OTHER_ORDERS))
        has_other_order |= any(type(layer.processor).__name__.startswith("PAG") for layer in self._attention_layers)
        if self._has_image or has_other_order:
            raise BadStrength(
                f"it is not known which rows of {self._name} are prompts: leave out on={side!r} and give one strength "
                "for each row, or attach to the pipeline that makes the pictures"
            )
        return PLAIN


def _read_flag(model: Any, name: str) -> bool | None:
    """Return a property of a pipeline, which it has while it runs; None if it has none."""
    try:
        return bool(getattr(model, name))
    except (AttributeError, TypeError):
        return None
