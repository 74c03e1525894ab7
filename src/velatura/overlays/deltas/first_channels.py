"""Changes of a UNet's first convolution on UNets that read more input channels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from velatura.base.image_condition import CONDITION_BY_CHANNELS, LATENT_CHANNELS
from velatura.errors import WrongBase, warn
from velatura.overlays.deltas.delta import Delta, TensorShape

FIRST_CONVOLUTION = "unet.conv_in"


class FirstChannelsDelta(Delta):
    """A change of the latents' channels alone, where an inpainting or pix2pix UNet reads more behind them.

    As in A1111, the weights of the other channels stay as they are. It computes densely, so that the dropout of input
    features does not act.

    Args:
        delta: A change of a convolution that reads the latents' channels. Its tensors are shared, not copied.
    """

    algorithm: ClassVar[str] = "first channels"

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        self.delta = delta

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of the weight that the change was made for."""
        return self.delta.weight_shape

    @property
    def needs_weight(self) -> bool:
        """Return True if the change depends on the weight or the bias."""
        return self.delta.needs_weight

    @property
    def rank(self) -> int | None:
        """Return the rank of the change."""
        return self.delta.rank

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a wider weight: zeros in the channels behind the latents'."""
        change = self.delta.weight_delta(weight[:, :LATENT_CHANNELS], strength)
        return functional.pad(change, (0, 0, 0, 0, 0, weight.shape[1] - LATENT_CHANNELS))

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        """Return the change of the bias."""
        return self.delta.bias_delta(bias, strength)

    def is_compatible(self, weight: Tensor) -> bool:
        """Return True if the change fits the latents' channels of a weight."""
        return self.delta.is_compatible(weight[:, :LATENT_CHANNELS])


def has_extra_channels(wide: TensorShape, narrow: TensorShape) -> bool:
    """Return True for the weights of two first convolutions of which only the first one reads more than latents.

    Args:
        wide, narrow: Shapes of the weights, (out channels, in channels, height, width).
    """
    if len(wide) != 4 or len(narrow) != 4:
        return False
    rest_fits = (wide[0], *wide[2:]) == (narrow[0], *narrow[2:])
    return rest_fits and wide[1] in CONDITION_BY_CHANNELS and narrow[1] == LATENT_CHANNELS


def check_input_channels(base: str, ours: TensorShape, other: str, theirs: TensorShape) -> None:
    """Warn of input channels that a difference leaves as they are, and refuse those that one of two models lacks.

    Args:
        base: Name of the model that the difference is for.
        ours: Shape of its first convolution's weight, (out channels, in channels, height, width).
        other: Name of the model that it is taken from.
        theirs: The same shape of that model.

    Raises:
        WrongBase: Only `other` is a model for inpainting or pix2pix, or the two are for different ones.
    """
    if len(ours) != 4 or len(theirs) != 4 or ours[1] == theirs[1]:
        return
    our_kind, their_kind = CONDITION_BY_CHANNELS.get(ours[1]), CONDITION_BY_CHANNELS.get(theirs[1])
    if our_kind and their_kind:
        raise WrongBase(
            f"{base} is a model for {our_kind} ({ours[1]} input channels) and {other} one for {their_kind} "
            f"({theirs[1]}): give two of one kind, or a plain one in place of {other}"
        )
    if has_extra_channels(ours, theirs):
        warn(
            f"{base} is a model for {our_kind}, whose UNet reads {ours[1]} channels, and {other} reads "
            f"{LATENT_CHANNELS}: the difference is in the first {LATENT_CHANNELS}, and the others stay those of {base}"
        )
    if has_extra_channels(theirs, ours):
        raise WrongBase(
            f"{other} is a model for {their_kind}, whose UNet reads {theirs[1]} channels, and {base} reads "
            f"{LATENT_CHANNELS}, which no overlay widens: give the {their_kind} model first, or merge the two"
        )


def fit_input_channels(delta: Delta, layer: nn.Module, name: str) -> Delta:
    """Return a delta that fits a UNet's first convolution, also if it was made for a UNet without an image condition.

    Args:
        delta: The change of the layer.
        layer: The layer.
        name: The target's name of the layer.

    Returns:
        The delta itself for all other layers, and where it fits as it is.
    """
    if name != FIRST_CONVOLUTION or not isinstance(layer, nn.Conv2d):
        return delta
    if layer.weight.shape[1] not in CONDITION_BY_CHANNELS or delta.is_compatible(layer.weight):
        return delta
    widened = FirstChannelsDelta(delta)
    return widened if widened.is_compatible(layer.weight) else delta
