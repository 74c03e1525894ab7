"""The report of a bake: what went into the weights, with the errors on held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from velatura.errors import quantity


class WidthFit(BaseModel):
    """Errors of the layers of one context width, compared with the hypernetworks.

    Attributes:
        width: Features of the contexts.
        layers: How many attention layers read contexts of this width.
        exact: True if the hypernetworks are affine, so that nothing was fitted.
        k, v: The errors of K and V relative to the size of K and V, without what softmax ignores in K; None if they
            were not measured.
        k_missed, v_missed: The same errors relative to the change that the overlays make, 1 if all of it is lost.
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
        line = f"{self.width}: {quantity(self.layers, 'layer')}, {'exact' if self.exact else 'fitted'}"
        if None in (self.k, self.v, self.k_missed, self.v_missed):
            return line
        k, v = _format_error(self.k, self.k_missed), _format_error(self.v, self.v_missed)
        return f"{line}, error of K {k}, of V {v}"


class BakedLayers(BaseModel):
    """An overlay whose changes of weights were added, which is exact except for rounding.

    Attributes:
        overlay: Its name.
        algorithms: The algorithms of its layers, such as "lora" or "loha".
        layers: How many layers it changes.
        unet, text: Its strengths in the UNet and in the text encoders.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlay: str
    algorithms: tuple[str, ...]
    layers: int
    unet: float
    text: float

    def __str__(self) -> str:
        strengths = f"{self.unet:g}"
        if self.unet != self.text:
            strengths = f"{self.unet:g} in the UNet, {self.text:g} in the text encoders"
        algorithms = " and ".join(self.algorithms)
        return f"{self.overlay}: {quantity(self.layers, 'layer')}, {algorithms}, added at {strengths}"


class BakeReport(BaseModel):
    """Contents and errors of a bake. Errors are relative, and measured on held-out prompts.

    Attributes:
        base: The name of the base.
        base_hash: Its hash, "" for a base in memory.
        strengths: The overlays in their order, with their strengths in the UNet.
        rank: The rank of a LoRA; None if whole weights were written.
        added: The overlays that were added exactly.
        widths: The errors of the layers that hypernetworks change.
        output: The error of the UNet's prediction relative to its size.
        output_missed: The same error relative to the change that the overlays make, 1 if all of it is lost.
        fitted_prompts, held_out_prompts: How many calibration prompts were fitted to and held out.
        steps: Steps of each calibration picture.
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
        """True if nothing was fitted, and no rank cuts anything off."""
        return self.rank is None and all(fit.exact for fit in self.widths)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        overlays = ", ".join(f"{name}:{strength:g}" for name, strength in self.strengths)
        yield f"{overlays} on {self.base}" + (f" as a LoRA of rank {self.rank}" if self.rank else "")
        yield from (f"  {row}" for row in (*self.added, *self.widths))
        yield f"  error of the UNet's prediction {_format_error(self.output, self.output_missed)}"
        prompts, steps = quantity(self.held_out_prompts, "held-out prompt"), quantity(self.steps, "step")
        yield f"  measured on {prompts}, {steps} each"


def _format_error(error: float | None, missed: float | None) -> str:
    """Return an error, and how much of the overlays' change it is."""
    return f"{error:.2g} ({missed:.2%} of the change lost)" if missed and missed >= 1e-4 else f"{error:.2g}"
