"""One model of a base, found in a file or a folder, before it is built: where its tensors and its settings are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from velatura.errors import UnsupportedBase
from velatura.formats import vocabulary
from velatura.formats.checkpoints.config_hints import CONFIG_HINTS_KEY, check_config_hints
from velatura.formats.checkpoints.diffusers_folder import merge_config
from velatura.formats.checkpoints.ldm_config import ModelConfig
from velatura.formats.checkpoints.tensor_sources import TensorSources, apply_sources
from velatura.tensors import DAMAGED_FILE_ERRORS, Contents, meta_tensors

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class ModelPart:
    """A UNet, a text encoder or an autoencoder in a file or a folder.

    Attributes:
        kind: "unet", "vae", "text", or "text_2" for a second text encoder, as in configurations.
        place: The file or the folder, for messages.
        contents: Its tensors and metadata.
        sources: The tensors by the model's names.
        stored: Its config.json; None for a file.
        tokenizer_folder: The folder of a text encoder's tokenizer; None if there is none.
    """

    kind: str
    place: Path
    contents: Contents
    sources: TensorSources
    stored: ModelConfig | None = None
    tokenizer_folder: Path | None = None

    @cached_property
    def shapes(self) -> dict[str, Tensor]:
        """Return the tensors by the model's names, on the meta device."""
        return apply_sources(self.sources, meta_tensors(self.contents.tensors))

    @property
    def config_kind(self) -> str:
        """Return the kind of its config.json, which is the same for both text encoders."""
        return "text" if self.kind.startswith("text") else self.kind

    def stated_settings(self, from_shapes: ModelConfig) -> ModelConfig | None:
        """Return the whole configuration, or None if only the shapes are known.

        Args:
            from_shapes: The settings that follow from the shapes.

        Raises:
            BadFile: A config.json that belongs to another model, or damaged metadata.
        """
        if self.stored is not None:
            return merge_config(self.config_kind, self.stored, from_shapes, self.place)
        if CONFIG_HINTS_KEY not in self.contents.metadata:
            return None
        hints: object = json.loads(self.contents.metadata[CONFIG_HINTS_KEY])
        if not isinstance(hints, dict) or self.kind not in hints:
            return None
        return check_config_hints(self.contents.path.name, cast("object", hints), [self.kind])[self.kind] | from_shapes

    def open_tokenizer(self, vocab_size: int, *, pads_with_zero: bool) -> CLIPTokenizer:
        """Open the tokenizer that belongs to a text encoder.

        Raises:
            UnsupportedBase: Neither the file nor a folder beside it has a vocabulary of this size.
            BadFile: The vocabulary does not fit the text encoder.
        """
        if self.tokenizer_folder is not None:
            tokenizer = vocabulary.read_tokenizer_folder(self.tokenizer_folder)
            if len(tokenizer) == vocab_size:
                return tokenizer
        return vocabulary.find_tokenizer(
            self.contents.path, self.contents.metadata, vocab_size, pads_with_zero=pads_with_zero
        )


def find_part_tokenizer(parts: Sequence[ModelPart], vocab_size: int, *, pads_with_zero: bool) -> CLIPTokenizer:
    """Return the tokenizer of a text encoder, or else that of another one with as many tokens.

    Args:
        parts: The text encoder, and after it others whose vocabulary may be the same.
        vocab_size: Number of tokens.
        pads_with_zero: See `find_tokenizer`.

    Raises:
        UnsupportedBase: None of them has a tokenizer of this size.
    """
    errors: list[UnsupportedBase] = []
    for part in parts:
        try:
            return part.open_tokenizer(vocab_size, pads_with_zero=pads_with_zero)
        except UnsupportedBase as error:
            errors.append(error)
    raise errors[0]


DAMAGED_PART_ERRORS = (StopIteration, *DAMAGED_FILE_ERRORS)
