"""Open the files of networks that detect and restore faces: tell them by their names, read their sizes off the shapes.

People have them in models/GFPGAN and models/Codeformer of A1111: GFPGANv1.4.pth, codeformer-v0.1.0.pth and
detection_Resnet50_Final.pth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from velatura.errors import BadFile
from velatura.face_restoration.codeformer import HEADS, NORM_GROUPS, BlockShape, CodeFormerNetwork
from velatura.face_restoration.gfpgan import CONVOLUTIONS_PER_SIZE, GfpganNetwork
from velatura.face_restoration.retinaface import EXPANSION, RetinaFaceNetwork
from velatura.tensors import StateDict, open_meta, open_tensors
from velatura.upscaling.weights_file import find_weights, load_network

GFPGAN, CODEFORMER, RETINAFACE = "GFPGAN", "CodeFormer", "RetinaFace"
MOBILE_RETINAFACE = "RetinaFace on MobileNet"  # detection_mobilenet0.25_Final.pth, which A1111 downloads too
FIRST_GFPGAN = "GFPGAN 1.0"  # with custom operators, which other layers would have to replace
# A tensor that a network of each kind has, and no other
MARKERS = {
    FIRST_GFPGAN: "conv_body_first.0.weight",
    GFPGAN: "conv_body_first.weight",
    CODEFORMER: "idx_pred_layer.1.weight",
    RETINAFACE: "LandmarkHead.0.conv1x1.weight",
    MOBILE_RETINAFACE: "LandmarkHead.0.conv1x1.weight",
}
# Starts of names beside those markers that others may have
SIDECAR_MARKERS = {
    GFPGAN: "stylegan_decoder.",
    FIRST_GFPGAN: "stylegan_decoder.",
    RETINAFACE: "body.layer4.",
    MOBILE_RETINAFACE: "body.stage1.",
}
FACE_DETECTORS = (RETINAFACE, MOBILE_RETINAFACE)
# What files hold beside the network that restores: what made styles of noise, and colours of the U-Net in training
UNUSED = ("stylegan_decoder.style_mlp.", "toRGB.")
BATCH_COUNTER = "num_batches_tracked"
MAX_LAYERS = 128  # of a kind, which the numbers in names count
MAX_FACE_SIDE = 1024  # in pixels
STAGES = 4  # of a ResNet
BLOCK = re.compile(r"(encoder|generator)\.blocks\.(\d{1,3})\.(.+)")
FUSION = re.compile(r"fuse_convs_dict\.(\d{1,4})\.scale\.0\.weight")

RestorerNetwork = GfpganNetwork | CodeFormerNetwork
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class FaceRestorer:
    """A network that restores aligned faces, ready for use.

    Attributes:
        name: The stem of its file.
        model: GFPGAN or CodeFormer.
        network: The network, in float32.
    """

    name: str
    model: str
    network: RestorerNetwork

    @property
    def side(self) -> int:
        """Sides of a face in pixels."""
        return self.network.side

    def restore(self, face: Tensor, fidelity: float) -> Tensor:
        """Return a face restored, (batch, 3, side, side) from -1 to 1.

        Args:
            face: The same of an aligned face, on the network's device.
            fidelity: CodeFormer's w, 0 for the best looks to 1 for the closest likeness; GFPGAN does not have it.
        """
        if isinstance(self.network, CodeFormerNetwork):
            return self.network(face, fidelity)
        return self.network(face)


@dataclass(frozen=True, eq=False)
class RetinaFaceDetector:
    """A network that finds faces, ready for use.

    Attributes:
        name: The stem of its file.
        network: The network, in float32.
    """

    name: str
    network: RetinaFaceNetwork


def detect_face_model(state: Mapping[str, Tensor]) -> str | None:
    """Tell by names which network on faces a file holds: a key of MARKERS, or None for any other file."""
    for model, marker in MARKERS.items():
        sidecar = SIDECAR_MARKERS.get(model, "")
        if marker in state and any(key.startswith(sidecar) for key in state):
            return model
    return None


def open_face_restorer(path: str | PathLike[str]) -> FaceRestorer:
    """Open the file of GFPGAN 1.2 to 1.4 or of CodeFormer; nothing in it is executed.

    Args:
        path: A torch file (.pth, .pt) or a safetensors file.

    Raises:
        BadFile: It is damaged, holds another kind of network, or its tensors do not fit together.
    """
    path = Path(path).expanduser()
    model = detect_face_model(find_weights(open_meta(path)))
    if model == FIRST_GFPGAN:
        raise BadFile(f"{path.name} is {model}, whose operators velatura does not have: give GFPGANv1.3 or GFPGANv1.4")
    if model == GFPGAN:
        return FaceRestorer(path.stem, model, _load(path, model, _build_gfpgan))
    if model == CODEFORMER:
        return FaceRestorer(path.stem, model, _load(path, model, _build_codeformer))
    found = f"is {model}, which detects faces" if model else "does not restore faces"
    raise BadFile(f"{path.name} {found}: give a file of GFPGAN (1.2 to 1.4) or of CodeFormer")


def open_face_detector(path: str | PathLike[str]) -> RetinaFaceDetector:
    """Open the file of RetinaFace on a ResNet, detection_Resnet50_Final.pth; nothing in it is executed.

    Args:
        path: A torch file (.pth, .pt) or a safetensors file.

    Raises:
        BadFile: It is damaged, holds another kind of network, or its tensors do not fit together.
    """
    path = Path(path).expanduser()
    model = detect_face_model(find_weights(open_meta(path)))
    if model != RETINAFACE:
        found = f"is {model}" if model else "does not detect faces"
        raise BadFile(f"{path.name} {found}: give detection_Resnet50_Final.pth, RetinaFace on a ResNet-50")
    return RetinaFaceDetector(path.stem, _load(path, model, _build_retinaface))


class _FileOutline(NamedTuple):
    """Names and shapes of a file's tensors, asked for with the file's name in errors.

    Attributes:
        file: The file's name.
        model: What it holds.
        state: Its tensors.
    """

    file: str
    model: str
    state: Mapping[str, Tensor]

    def shape(self, key: str, dimensions: int) -> torch.Size:
        """Return the shape of a tensor; raises BadFile if it is missing or has other dimensions."""
        if key not in self.state:
            raise BadFile(f"{self.file} lacks {key}, which {self.model} needs: download it again")
        shape = self.state[key].shape
        if len(shape) != dimensions:
            raise self.error(f"{key} has the shape {tuple(shape)}")
        return shape

    def channels(self, key: str) -> int:
        """Return the output channels of a convolution on images, or of a vector."""
        shape = self.state[key].shape if key in self.state else torch.Size()
        return self.shape(key, 1 if len(shape) == 1 else 4)[0]

    def count(self, pattern: str) -> int:
        """Return how many tensors follow one another by the number in their names, from 0."""
        return next(number for number in range(MAX_LAYERS + 1) if pattern.format(number) not in self.state)

    def error(self, found: str) -> BadFile:
        """Return the error of a file whose tensors do not fit together."""
        return BadFile(f"{self.file} does not hold a whole {self.model} ({found}): download it again")


def _load(path: Path, model: str, build: Callable[[_FileOutline], Network]) -> Network:
    """Build a network of the sizes that its file has, and load it."""
    state = _used_tensors(find_weights(open_tensors(path)))
    with torch.device("meta"):
        network = build(_FileOutline(path.name, model, state))
    load_network(network, state, file=path.name, model=model)
    return network


def _used_tensors(state: StateDict) -> dict[str, Tensor]:
    return {key: state[key] for key in state if not key.startswith(UNUSED) and not key.endswith(BATCH_COUNTER)}


def _build_gfpgan(outline: _FileOutline) -> GfpganNetwork:
    sizes = outline.count("conv_body_down.{}.conv2.weight")
    if not sizes:
        raise outline.error("no blocks")
    decoder = [outline.shape("stylegan_decoder.constant_input.weight", 4)[1]]
    for size in range(sizes):
        key = f"stylegan_decoder.style_convs.{CONVOLUTIONS_PER_SIZE * size}.modulated_conv.weight"
        decoder.append(outline.shape(key, 5)[1])
    conditions = [outline.channels(f"condition_scale.{size}.2.weight") for size in range(sizes)]
    if any(condition > channels for condition, channels in zip(conditions, decoder[1:], strict=True)):
        raise outline.error("more conditions than channels")
    encoder = [outline.channels(f"conv_body_down.{size}.conv2.weight") for size in range(sizes)]
    network = GfpganNetwork(
        encoder_channels=[outline.channels(MARKERS[GFPGAN]), *encoder],
        decoder_channels=decoder,
        condition_channels=conditions,
        style_features=outline.shape("stylegan_decoder.style_conv1.modulated_conv.modulation.weight", 2)[1],
    )
    _check_side(outline, network.side)
    return network


def _build_codeformer(outline: _FileOutline) -> CodeFormerNetwork:
    cells, features = outline.shape("position_emb", 2)
    layers = outline.count("ft_layers.{}.linear1.weight")
    if math.isqrt(cells) ** 2 != cells or features % HEADS or not layers:
        raise outline.error(f"{cells} cells of {features} features, {layers} layers")
    entries, entry_features = outline.shape("quantize.embedding.weight", 2)
    encoder, generator = _read_blocks(outline, "encoder"), _read_blocks(outline, "generator")
    ends = encoder[0].channels_in, encoder[-1].channels_out, generator[0].channels_in, generator[-1].channels_out
    if ends != (3, entry_features, entry_features, 3):
        raise outline.error(f"channels at the ends of encoder and generator are {ends}")
    fusions = {int(match[1]): outline.channels(key) for key in outline.state if (match := FUSION.fullmatch(key))}
    network = CodeFormerNetwork(
        encoder=encoder,
        generator=generator,
        codebook_shape=(entries, entry_features),
        cells=cells,
        features=features,
        hidden_features=outline.shape("ft_layers.0.linear1.weight", 2)[0],
        layers=layers,
        fusions=fusions,
    )
    _check_side(outline, network.side)
    possible = _fusion_channels(encoder, generator, network.side)
    if possible is None or not fusions.items() <= possible.items():
        raise outline.error(f"fusions at {sorted(fusions)} pixels")
    return network


def _fusion_channels(encoder: list[BlockShape], generator: list[BlockShape], side: int) -> dict[int, int] | None:
    """Return channels by the sides at which encoder and generator have equal ones, None if their sizes differ."""
    encoded: dict[int, int] = {}
    for block in encoder:
        if block.kind == "down":
            encoded[side] = block.channels_in
            side //= 2
    possible: dict[int, int] = {}
    for before, block in pairwise(generator):
        if before.kind == "up":
            side *= 2
            if encoded.get(side) == block.channels_out and block.channels_out % NORM_GROUPS == 0:
                possible[side] = block.channels_out
    return possible if side == max(encoded, default=side) else None


def _check_side(outline: _FileOutline, side: int) -> None:
    if side > MAX_FACE_SIDE:
        raise outline.error(f"faces of {side} pixels")


def _read_blocks(outline: _FileOutline, part: str) -> list[BlockShape]:
    """Tell the blocks of the encoder or the generator by the names in each."""
    names: dict[int, set[str]] = {}
    for key in outline.state:
        match = BLOCK.fullmatch(key)
        if match and match[1] == part:
            names.setdefault(int(match[2]), set()).add(match[3])
    if sorted(names) != list(range(len(names))):
        raise outline.error(f"{len(names)} blocks of the {part}")
    blocks = [_read_block(outline, f"{part}.blocks.{number}", names[number]) for number in range(len(names))]
    is_chain = all(before.channels_out == after.channels_in for before, after in pairwise(blocks))
    if not blocks or not is_chain:
        raise outline.error(f"blocks of the {part} that do not follow one another")
    return blocks


def _read_block(outline: _FileOutline, prefix: str, names: set[str]) -> BlockShape:
    """Tell one block by the names of its tensors."""
    if "q.weight" in names:
        kind, first, last = "attention", "q.weight", "proj_out.weight"
    elif "conv2.weight" in names:
        kind, first, last = "residual", "conv1.weight", "conv2.weight"
    elif "conv.weight" in names:
        kind, first, last = "down" if prefix.startswith("encoder") else "up", "conv.weight", "conv.weight"
    elif len(outline.state.get(f"{prefix}.weight", torch.empty(0)).shape) == 1:
        channels = outline.channels(f"{prefix}.weight")
        kind, channels_in, channels_out = "norm", channels, channels
        return _check_groups(outline, BlockShape(kind, channels_in, channels_out))
    else:
        kind, first, last = "convolution", "weight", "weight"
    channels_in = outline.shape(f"{prefix}.{first}", 4)[1]
    return _check_groups(outline, BlockShape(kind, channels_in, outline.channels(f"{prefix}.{last}")))


def _check_groups(outline: _FileOutline, block: BlockShape) -> BlockShape:
    """Refuse channels that group normalisation cannot divide."""
    if block.kind in {"norm", "residual", "attention"} and (block.channels_in | block.channels_out) % NORM_GROUPS:
        raise outline.error(f"{block.channels_in} channels")
    return block


def _build_retinaface(outline: _FileOutline) -> RetinaFaceNetwork:
    stages = range(1, STAGES + 1)
    blocks = [outline.count(f"body.layer{stage}.{{}}.conv1.weight") for stage in stages]
    if not all(blocks):
        raise outline.error(f"stages of {blocks} blocks")
    channels = [outline.channels(f"body.layer{stage}.0.conv1.weight") for stage in stages]
    pyramid_channels = outline.channels("fpn.output1.0.weight")
    if pyramid_channels % EXPANSION:
        raise outline.error(f"{pyramid_channels} channels")
    return RetinaFaceNetwork(channels=channels, blocks=blocks, pyramid_channels=pyramid_channels)
