"""CodeFormer's network: an autoencoder with a codebook, whose entries a transformer predicts from the damaged face.

From the papers: Zhou et al., Towards Robust Blind Face Restoration with Codebook Lookup Transformer, 2022; Esser et
al., Taming Transformers for High-Resolution Image Synthesis, 2020. Tensors are named as in codeformer-v0.1.0.pth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_GROUPS, NORM_EPSILON = 32, 1e-6  # of the autoencoder, as in the paper on VQGAN's code
HEADS = 8  # of the transformer
SLOPE = 0.2  # of the leaky ReLU in the fusions
STATISTICS_EPSILON = 1e-5  # of the variance in adaptive instance normalisation


class BlockShape(NamedTuple):
    """A block of the encoder or the generator.

    Attributes:
        kind: "convolution", "residual", "attention", "down", "up" or "norm".
        channels_in, channels_out: Channels of input and output.
    """

    kind: str
    channels_in: int
    channels_out: int


class ResidualBlock(nn.Module):
    """Two convolutions behind normalisations and SiLU, and a residual around them."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels_in), _norm(channels_out)
        self.conv1, self.conv2 = _convolution(channels_in, channels_out), _convolution(channels_out, channels_out)
        self.conv_out = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same sides."""
        inner = self.conv1(functional.silu(self.norm1(x)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return inner + (x if self.conv_out is None else self.conv_out(x))


class AttentionBlock(nn.Module):
    """Self-attention of one head over all cells, and a residual around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        normalised = self.norm(x)
        query, key, value = (layer(normalised).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attention = functional.scaled_dot_product_attention(query, key, value)  # (batch, cells, channels)
        return x + self.proj_out(attention.transpose(1, 2).unflatten(2, x.shape[2:]))


class HalvingBlock(nn.Module):
    """A convolution of stride 2 that reads beyond the right and the lower edge."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of half the sides."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class DoublingBlock(nn.Module):
    """A convolution behind a nearest-neighbour enlargement."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _convolution(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of twice the sides."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class BlockChain(nn.Module):
    """The encoder or the generator of the autoencoder."""

    def __init__(self, blocks: Sequence[BlockShape]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(_build_block, blocks))


class Fusion(nn.Module):
    """Scales and shifts the generator's features by those of the encoder, so that the result keeps the identity.

    Args:
        channels: Channels of either.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encode_enc = ResidualBlock(2 * channels, channels)
        self.scale, self.shift = _fusion_layers(channels), _fusion_layers(channels)

    def forward(self, encoded: Tensor, x: Tensor, fidelity: float) -> Tensor:
        """Return features of the same shape.

        Args:
            encoded: The encoder's features, (batch, channels, height, width).
            x: The generator's.
            fidelity: How much the encoder's count, the paper's w, 0 to 1.
        """
        both = self.encode_enc(torch.cat([encoded, x], 1))
        return x + fidelity * (x * self.scale(both) + self.shift(both))


class TransformerLayer(nn.Module):
    """A layer of the transformer, with the normalisations in front; positions are added to queries and keys."""

    def __init__(self, features: int, hidden_features: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(features, HEADS)
        self.linear1, self.linear2 = nn.Linear(features, hidden_features), nn.Linear(hidden_features, features)
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return (cells, batch, features) of the same; `positions` is (cells, 1, features)."""
        value = self.norm1(x)
        query = value + positions
        x = x + self.self_attn(query, query, value, need_weights=False)[0]
        return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))


class CodeFormerNetwork(nn.Module):
    """Restores an aligned face.

    Args:
        encoder, generator: The blocks of the autoencoder.
        codebook_shape: Entries of the codebook, and features of an entry.
        cells: Cells of the smallest grid.
        features: Features of the transformer.
        hidden_features: Features inside its layers' second part.
        layers: Its layers.
        fusions: Channels by the sides of a face at which encoder and generator are fused.

    Attributes:
        side: Sides of the face in pixels.
    """

    def __init__(
        self,
        *,
        encoder: Sequence[BlockShape],
        generator: Sequence[BlockShape],
        codebook_shape: tuple[int, int],
        cells: int,
        features: int,
        hidden_features: int,
        layers: int,
        fusions: Mapping[int, int],
    ) -> None:
        super().__init__()
        entries, entry_features = codebook_shape
        self.side = math.isqrt(cells) * 2 ** sum(block.kind == "down" for block in encoder)
        self.encoder, self.generator = BlockChain(encoder), BlockChain(generator)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(entries, entry_features)
        self.position_emb = nn.Parameter(torch.empty(cells, features))
        self.feat_emb = nn.Linear(entry_features, features)
        self.ft_layers = nn.ModuleList(TransformerLayer(features, hidden_features) for _ in range(layers))
        self.idx_pred_layer = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, entries, bias=False))
        self.fuse_convs_dict = nn.ModuleDict({str(side): Fusion(channels) for side, channels in fusions.items()})

    def forward(self, face: Tensor, fidelity: float) -> Tensor:
        """Return the face restored.

        Args:
            face: (batch, 3, side, side), RGB from -1 to 1.
            fidelity: How much of the damaged face's own features is kept, the paper's w: 0 for the best looks, 1 for
                the closest likeness.

        Returns:
            The same shape; values may lie a little outside -1 to 1.
        """
        x, encoded = self._encode(face)
        codes = self._predict_codes(x)
        x = _match_statistics(codes, x)
        side = x.shape[-1]
        for before, block in pairwise([None, *self.generator.blocks]):
            assert block is not None
            x = block(x)
            # behind the first block of each size
            if isinstance(before, DoublingBlock):
                side = x.shape[-1]
                if fidelity > 0 and str(side) in self.fuse_convs_dict:
                    x = self.fuse_convs_dict[str(side)](encoded[side], x, fidelity)
        return x

    def _encode(self, face: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the smallest features, and those before each halving by their sides."""
        x, encoded = face, dict[int, Tensor]()
        for block in self.encoder.blocks:
            if isinstance(block, HalvingBlock):
                encoded[x.shape[-1]] = x
            x = block(x)
        return x, encoded

    def _predict_codes(self, x: Tensor) -> Tensor:
        """Return the entries of the codebook that the transformer finds likeliest, (batch, features, height, width)."""
        tokens = self.feat_emb(x.flatten(2).permute(2, 0, 1))  # (cells, batch, features)
        positions = self.position_emb[:, None]
        for layer in self.ft_layers:
            tokens = layer(tokens, positions)
        indices = self.idx_pred_layer(tokens).argmax(-1).T  # (batch, cells)
        entries = self.quantize.get_submodule("embedding")(indices)
        return entries.transpose(1, 2).unflatten(2, x.shape[2:])


def _build_block(block: BlockShape) -> nn.Module:
    kind, channels_in, channels_out = block
    if kind == "residual":
        return ResidualBlock(channels_in, channels_out)
    if kind == "attention":
        return AttentionBlock(channels_in)
    if kind == "down":
        return HalvingBlock(channels_in, channels_out)
    if kind == "up":
        return DoublingBlock(channels_in, channels_out)
    return _norm(channels_in) if kind == "norm" else _convolution(channels_in, channels_out)


def _match_statistics(codes: Tensor, features: Tensor) -> Tensor:
    """Give codes the mean and deviation that the damaged face's features have in each channel (Huang et al., 2017)."""
    code_deviation, code_mean = _statistics(codes)
    deviation, mean = _statistics(features)
    return (codes - code_mean) / code_deviation * deviation + mean


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation and the mean of each channel, (batch, channels, 1, 1)."""
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return (variance + STATISTICS_EPSILON).sqrt(), mean


def _fusion_layers(channels: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, channels), nn.LeakyReLU(SLOPE), _convolution(channels, channels))


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPSILON)
