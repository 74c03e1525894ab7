"""What became of overlays on their way into weights, with the errors on prompts that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict


class WidthFit(BaseModel):
    """How well the change of one width's contexts went into weights.

    exact: nothing was fitted, the overlays are affine there. k, v: the error of K and of V relative to their own size,
    what softmax does not see of K left out. k_missed, v_missed: the same relative to the overlays' change of them, so
    that 1 is all lost. None where none was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int
    layers: int
    exact: bool
    k: float | None = None
    v: float | None = None
    k_missed: float | None = None
    v_missed: float | None = None

    def __str__(self) -> str:
        head = f"{self.width}: {_format_count(self.layers, 'layer')}, {'exact' if self.exact else 'fitted'}"
        if None in (self.k, self.v, self.k_missed, self.v_missed):
            return head
        return (
            f"{head}, K is off by {_format_error(self.k, self.k_missed)}, V by {_format_error(self.v, self.v_missed)}"
        )


class BakedLayers(BaseModel):
    """An overlay whose changes of weights were added to them, which is exact but for rounding.

    algorithms: how they are written down. unet, text: how strongly it acts in those parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlay: str
    algorithms: tuple[str, ...]
    layers: int
    unet: float
    text: float

    def __str__(self) -> str:
        strengths = (
            f"{self.unet:g}" if self.unet == self.text else f"{self.unet:g} in the UNet, {self.text:g} in the text"
        )
        return f"{self.overlay}: {_format_count(self.layers, 'layer')}, {' and '.join(self.algorithms)}, added at {strengths}"


class BakeReport(BaseModel):
    """What went into weights, and how well; errors are relative, on the prompts held out.

    strengths: of the overlays by name, in order, of two those in the UNet; added: those that are changes of weights
    already. rank: of a LoRA; None where whole weights were written. output: the
    error of what the UNet predicts; output_missed: the same relative to the overlays' change of it, 1 being all lost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_hash: str = ""
    strengths: tuple[tuple[str, float], ...]
    rank: int | None = None
    added: tuple[BakedLayers, ...] = ()
    widths: tuple[WidthFit, ...] = ()
    output: float
    output_missed: float
    fitted_prompts: int = 0
    held_out_prompts: int = 0
    steps: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether nothing was fitted and nothing cut off."""
        return self.rank is None and all(fit.exact for fit in self.widths)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        overlays = ", ".join(f"{name}:{strength:g}" for name, strength in self.strengths)
        yield f"{overlays} on {self.base}" + (f" as a LoRA of rank {self.rank}" if self.rank else "")
        yield from (f"  {row}" for row in (*self.added, *self.widths))
        yield f"  what the UNet predicts is off by {_format_error(self.output, self.output_missed)}"
        yield f"  measured on {_format_count(self.held_out_prompts, 'prompt')} held out, {_format_count(self.steps, 'step')} each"


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _format_error(error: float | None, missed: float | None) -> str:
    """An error, and which part of the change it is."""
    return f"{error:.2g} ({missed:.2%} of the change lost)" if missed and missed >= 1e-4 else f"{error:.2g}"
