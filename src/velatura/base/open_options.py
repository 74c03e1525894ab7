"""How a base was opened, so that a run or a recipe can open it again in the same way."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from velatura.base.families import PredictionWord


class OpenOptions(BaseModel):
    """Arguments of `open_base` that decide what a base computes, beside the path that it was opened from.

    Attributes:
        unet: Absolute path, or hub:OWNER/NAME, of the UNet that replaces the base's own; None for its own.
        text: The same for text encoders; empty for its own.
        vae: The same for the autoencoder; None for its own, or for the file beside the checkpoint.
        weights: Which weights of a checkpoint's UNet were taken.
        prediction: What the caller said that the UNet predicts; None if nothing was said.
        zero_snr: Whether the caller asked for a noise schedule to zero terminal SNR; None if nothing was said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unet: str | None = None
    text: tuple[str, ...] = ()
    vae: str | None = None
    weights: Literal["last", "ema"] = "last"
    prediction: PredictionWord | None = None
    zero_snr: bool | None = None

    def command_words(self, base: str) -> list[str]:
        """Return the words of `velatura generate` and `grid` that open the base again; none for the tiny base.

        Args:
            base: The base, as --base takes it.
        """
        words = [] if base == "tiny" else ["--base", base]
        for flag, paths in (("--unet", [self.unet]), ("--text", self.text), ("--vae", [self.vae])):
            for path in filter(None, paths):
                words += [flag, path]
        words += [] if self.weights == "last" else ["--weights", self.weights]
        words += [] if self.prediction is None else ["--prediction", self.prediction]
        if self.zero_snr is not None:
            words.append("--zero-snr" if self.zero_snr else "--no-zero-snr")
        return words
