"""The text encoders: a prompt's words in, what the UNet reads out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from velatura.base.conditioning import Conditioning
from velatura.base.hearing import hearing
from velatura.base.words import ROOM, Glossary
from velatura.errors import BadRecipe, VelaturaWarning

TOKENS = 77


class Said(NamedTuple):
    """What a tower says of chunks: hidden (chunks, 77, width), and pooled (chunks, width) where it has a projection."""

    hidden: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Tower:
    """A CLIP text tower, its tokenizer, and the layer that is read.

    skip counts layers from the end, 1 being the last; final_norm tells whether the final layer norm follows. An SD1
    reads (1, True), an SD2 the same of the 23 layers it keeps of 24, an SDXL (2, False) of both its towers.
    takes_clip_skip: whether a clip skip moves the layer; it does so on SD1 only. start_id and end_id frame every chunk
    of 77 ids, pad_id fills it up.
    """

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection
    skip: int = 1
    final_norm: bool = True
    takes_clip_skip: bool = True

    @property
    def start_id(self) -> int:
        """What a chunk begins with."""
        return _special(self.tokenizer.bos_token_id)

    @property
    def end_id(self) -> int:
        """What ends the words of a chunk."""
        return _special(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """What fills a chunk up: the end again for CLIP, 0 for OpenCLIP."""
        return _special(self.tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Features of a token's vector."""
        return int(self.model.config.hidden_size)

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return int(self.model.config.num_hidden_layers)

    def framed(self, tokens: Sequence[int]) -> list[int]:
        """Up to 75 ids with start, end and padding."""
        ids = [self.start_id, *tokens, self.end_id]
        return ids + [self.pad_id] * (TOKENS - len(ids))

    def encode_ids(self, ids: Tensor, clip_skip: int | None = None) -> Said:
        """Encode framed ids (chunks, 77)."""
        skip = clip_skip if clip_skip and self.takes_clip_skip else self.skip
        plain = skip == 1 and self.final_norm
        said: Any = self.model(input_ids=ids.to(self.model.device), output_hidden_states=not plain)
        pooled: Tensor | None = getattr(said, "text_embeds", None)
        if plain:
            return Said(said.last_hidden_state, pooled)
        hidden: Tensor = said.hidden_states[-skip]
        inner: Any = getattr(self.model, "text_model", self.model)
        return Said(inner.final_layer_norm(hidden) if self.final_norm else hidden, pooled)


class TextEncoder:
    """The text towers of a base, which read the same tokens: one in an SD1 or SD2, two in an SDXL.

    Their vectors are joined token by token; the pooled prompt is that of the last tower.
    """

    def __init__(self, towers: Sequence[Tower]) -> None:
        self.towers = tuple(towers)
        self.glossary = Glossary()

    def __getstate__(self) -> dict[str, object]:
        """What deepcopy and pickle make of it: no words, whose vectors its copied towers do not know."""
        return {"towers": self.towers, "glossary": Glossary()}

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first tower's tokenizer, whose ids all towers read."""
        return self.towers[0].tokenizer

    @property
    def model(self) -> CLIPTextModel | CLIPTextModelWithProjection:
        """The first tower's model."""
        return self.towers[0].model

    @property
    def width(self) -> int:
        """Features of a token's vector, of all towers together."""
        return sum(tower.width for tower in self.towers)

    def copied(self) -> TextEncoder:
        """The same with models of its own."""
        return TextEncoder([replace(tower, model=deepcopy(tower.model)) for tower in self.towers])

    @property
    def takes_clip_skip(self) -> bool:
        """Whether a clip skip changes what is read."""
        return any(tower.takes_clip_skip for tower in self.towers)

    def check_clip_skip(self, clip_skip: int) -> None:
        """Raise BadRecipe for a layer that a tower lacks."""
        moved = [tower.layers for tower in self.towers if tower.takes_clip_skip]
        if moved and not 1 <= clip_skip <= min(moved):
            raise BadRecipe(f"a clip skip of {clip_skip} reads no layer: this base has 1 (the last) to {min(moved)}")

    def token_ids(self, text: str) -> list[int]:
        """Turn text of any length into ids, without start, end and padding."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def read(self, text: str) -> list[tuple[int, ...]]:
        """What text says in ids: each token by itself, and those that stand for an embedding's vectors together."""
        return self.glossary.read(text, self.token_ids)

    def encode_chunks(self, chunks: Sequence[Sequence[int]], clip_skip: int | None = None) -> list[Said]:
        """What each tower says of chunks of up to 75 ids.

        clip_skip: which layer from the end is read, 1 being the last; None for that which the base was trained with.
        """
        if clip_skip is not None:
            self.check_clip_skip(clip_skip)
        return [
            tower.encode_ids(torch.tensor([tower.framed(chunk) for chunk in chunks]), clip_skip)
            for tower in self.towers
        ]

    def conditioning(self, texts: Iterable[str], clip_skip: int | None = None) -> Conditioning:
        """Encode plain texts; what is past 75 tokens is cut off with a warning."""
        chunks = self._cut_each(list(texts))
        said = self.encode_chunks(chunks, clip_skip)
        context = torch.cat([each.hidden for each in said], dim=-1)  # (batch, 77, width)
        return Conditioning(context, said[-1].pooled)

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Encode plain texts into contexts (batch, 77, width); what is past 75 tokens is cut off with a warning."""
        return self.conditioning(texts).context

    def _cut_each(self, texts: Sequence[str]) -> list[list[int]]:
        cut: list[list[int]] = []
        for row, text in enumerate(texts):
            with hearing(row=row, rows=len(texts)):
                cut.append(self._cut(text))
        return cut

    def _cut(self, text: str) -> list[int]:
        ids: list[int] = []
        read = self.read(text)
        for tokens in read:
            if len(ids) + len(tokens) > ROOM:
                whole = sum(map(len, read))
                said = f"{text[:40]!r}... has {whole} tokens, of which the first {len(ids)} are read: make it shorter"
                warnings.warn(said, VelaturaWarning, stacklevel=5)
                break
            ids += tokens
        return ids


def _special(found: object) -> int:
    assert isinstance(found, int)
    return found
