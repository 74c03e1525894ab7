"""The report of a merge: what was mixed, copied and left out, and how much of each parent is left."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from velatura.merging.checkpoints.options import MergeOptions
from velatura.merging.checkpoints.retention import RetentionReport


class MergeReport(BaseModel):
    """Counts of what went into a merge, and what is left of each parent.

    Attributes:
        file: The file that was written, "" for a merge in memory.
        models: The names of the models, in the order A, B, C.
        mix: How they were mixed.
        tensors: How many tensors the merge has.
        mixed: How many of them were mixed.
        only_first: How many weights the other models lack, so that those of A are kept.
        dropped: How many tensors of B are missing in A, and so in the merge.
        vae: How many tensors come from another VAE.
        discarded: How many tensors were left out on request.
        config: The .yaml file that was copied.
        purpose: What the model is for, such as "inpainting"; "" for text to image.
        dilution: How much of each parent is left; None if nothing was mixed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = ""
    models: tuple[str, ...]
    mix: MergeOptions
    tensors: int
    mixed: int
    only_first: int = 0
    dropped: int = 0
    vae: int = 0
    discarded: int = 0
    config: str = ""
    purpose: str = ""
    dilution: RetentionReport | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        purpose = f", for {self.purpose}" if self.purpose else ""
        yield f"{self.mix.title(self.models)}: {self.mixed} of {self.tensors} tensors mixed{purpose}"
        counts = {
            f"weights only {self.models[0]} has, kept unchanged": self.only_first,
            f"tensors that {self.models[0]} lacks, left out": self.dropped,
            "tensors from the other VAE": self.vae,
            "tensors discarded": self.discarded,
        }
        yield from (f"  {count} {description}" for description, count in counts.items() if count)
        if self.config:
            yield f"  {self.config} copied"
        if self.dilution:
            yield from (f"  {line}" for line in str(self.dilution).splitlines())
