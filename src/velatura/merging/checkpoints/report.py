"""What became of models on their way into one."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from velatura.merging.checkpoints.options import MergeOptions
from velatura.merging.checkpoints.retention import RetentionReport


class MergeReport(BaseModel):
    """What went into a merged file.

    mixed: how many tensors were; only_first: how many weights the others lack, so that the first model's stand there;
    dropped: how many the others have that the first lacks. vae, discarded: how many tensors came from another
    autoencoder, and how many were left out. config: the .yaml that was copied. dilution: what is left of each parent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
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
        yield f"{self.mix.title(self.models)}: {self.mixed} of {self.tensors} tensors mixed" + (
            f", for {self.purpose}" if self.purpose else ""
        )
        counts = {
            f"weights of {self.models[0]} alone are kept": self.only_first,
            "tensors of the others, which it lacks, are dropped": self.dropped,
            "tensors come from the other autoencoder": self.vae,
            "tensors are left out": self.discarded,
        }
        yield from (f"  {count} {what}" for what, count in counts.items() if count)
        if self.config:
            yield f"  {self.config} is copied"
        if self.dilution:
            yield from (f"  {line}" for line in str(self.dilution).splitlines())
