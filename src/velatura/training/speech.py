"""What is said of the pictures while an overlay trains: their captions, worded anew where the plan says so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import cast

import torch
from torch import Tensor

from velatura.base.conditioning import Conditioning
from velatura.base.text import TextEncoder
from velatura.datasets.templates import FILEWORDS, NAME, Wording
from velatura.overlays.overlay import Overlay
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, conditioning
from velatura.training.chance import seed_of
from velatura.training.encodings import Encodings
from velatura.training.texts import Texts

REMEMBERED = 256  # texts; what an SD1 is told by one takes 240 kB, an SDXL 630


def name_of(overlay: Overlay) -> str:
    """What an overlay is called by in captions: its first trigger word, or else its name."""
    return (*overlay.card.trigger_words, overlay.card.name)[0]


class Speech:
    """What the base is told of each picture, by its caption.

    is_learned: whether the overlay changes what words say, so that they are encoded at every step, with gradients.
    Else each text is encoded once, and where it is the same at each step, before the first; encodings: where what is
    said is kept then between runs.
    """

    def __init__(
        self,
        text: TextEncoder,
        captions: Sequence[str],
        wording: Wording | None = None,
        *,
        is_learned: bool = False,
        encodings: Encodings | None = None,
    ) -> None:
        self.captions, self.wording, self.is_learned = tuple(captions), wording or Wording(), is_learned
        self._text, self._texts = text, Texts(text, encodings)
        self._encoded: OrderedDict[tuple[str, int], Conditioning] = OrderedDict()
        self._fixed = self.fixed() if self.wording.is_fixed and not is_learned else None

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.captions)

    def of(self, pictures: Tensor, captionless: Tensor, seed: int, first: int) -> Conditioning:
        """What is said of pictures (batch,), nothing of those that are captionless (batch,).

        first: how many pictures were learned from before these.
        """
        if self._fixed:
            return self._fixed.rows(torch.where(captionless, self.count, pictures))
        worded = [self._worded(picture, seed, first + place) for place, picture in enumerate(_numbers(pictures))]
        return self._said(["" if none else text for text, none in zip(worded, _numbers(captionless), strict=True)])

    def plainly(self, pictures: Tensor) -> Conditioning:
        """What is said of pictures (batch,) when they are examined: worded the same at each try, and for each seed."""
        if self._fixed:
            return self._fixed.rows(pictures)
        return self._said([self._worded(picture, 0, picture) for picture in _numbers(pictures)])

    def hears(self, vectors: Sequence[Tensor], picture: int) -> bool:
        """Whether some vectors have a part in what is said of a picture."""
        context = self.plainly(torch.tensor([picture])).context
        if not context.requires_grad:
            return False
        moved = torch.autograd.grad(context.square().sum(), vectors, materialize_grads=True)
        return any(bool(each.any()) for each in moved)

    @torch.no_grad()
    def fixed(self) -> Conditioning:
        """A row for each caption, and a last one for none, which says what an empty negative prompt does."""
        lines = [*(self.wording.draw(caption, Random(0)) for caption in self.captions), ""]
        encode = self._encode if self.is_learned else self._texts.said
        said = {line: encode(Prompt(line, line), self._usual_count) for line in set(lines)}
        return Conditioning.joined([said[line] for line in lines])

    def _worded(self, picture: int, seed: int, number: int) -> str:
        return self.wording.draw(self.captions[picture], Random(seed_of(seed, "wording", number)))

    def _said(self, texts: Sequence[str]) -> Conditioning:
        prompts = {text: Prompt(text, text) for text in texts}
        count = max(self._usual_count, *(len(chunks_of(self._text, each)) for each in prompts.values()))
        encode = self._encode if self.is_learned else self._remembered
        encoded = {text: encode(prompt, count) for text, prompt in prompts.items()}
        return Conditioning.joined([encoded[text] for text in texts])

    @cached_property
    def _usual_count(self) -> int:
        """How many chunks the longest caption takes, so that contexts are as long at each step, or nearly."""
        lines = [line.replace(NAME, self.wording.name) for line in self.wording.lines]
        texts = {line.replace(FILEWORDS, caption) for line in lines for caption in self.captions}
        return max(len(chunks_of(self._text, Prompt(text, text))) for text in texts)

    @torch.no_grad()
    def _remembered(self, prompt: Prompt, count: int) -> Conditioning:
        key = prompt.words, count
        if key not in self._encoded:
            self._encoded[key] = self._encode(prompt, count)
        self._encoded.move_to_end(key)
        if len(self._encoded) > REMEMBERED:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _encode(self, prompt: Prompt, count: int) -> Conditioning:
        return conditioning(self._text, [prompt], count, negative=not prompt.words)


def _numbers(rows: Tensor) -> list[int]:
    return cast("list[int]", rows.tolist())  # pyright: ignore[reportUnknownMemberType]
