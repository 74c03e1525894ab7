"""Open the file of an upscaler: find its tensors, tell the network by names and shapes, and load them strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch

from velatura.errors import BadFile
from velatura.tensors import StateDict, open_meta, open_tensors
from velatura.upscaling.networks import CompactNetwork, RrdbNetwork, UpscalerNetwork
from velatura.upscaling.weights_file import find_weights, load_network

# Names of ESRGAN's first files, in which numbers count the layers, and of BSRGAN's; on the right Real-ESRGAN's
FIRST_NAMES = re.compile(r"model\.(?P<layer>\d+)\.(?P<end>weight|bias)")
FIRST_DENSE = re.compile(r"model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0\.(weight|bias)")
FIRST_TRUNK = re.compile(r"model\.1\.sub\.(\d+)\.(weight|bias)")
RENAMED = (
    (re.compile(r"^RRDB_trunk\.(\d+)\.RDB([123])\.conv"), r"body.\1.rdb\2.conv"),
    (re.compile(r"^trunk_conv\."), "conv_body."),
    (re.compile(r"^upconv(\d)\."), r"conv_up\1."),
    (re.compile(r"^HRconv\."), "conv_hr."),
)
DENSE_KEY = re.compile(r"body\.(\d+)\.rdb[123]\.conv[1-5]\.(?:weight|bias)")
COMPACT_KEY = re.compile(r"body\.(\d+)\.(weight|bias)")
FIRST_DENSE_WEIGHT = "body.0.rdb1.conv1.weight"
UNSHUFFLE_BY_CHANNELS = {3: 1, 12: 2, 48: 4}
# Parts that only these networks have, by the start of their tensors' names
FACE_RESTORER_PARTS = {"GFPGAN": "stylegan_decoder.", "CodeFormer": "idx_pred_layer."}
MAX_DOUBLINGS = 4
MAX_COMPACT_SCALE = 16


class UpscalerLayout(NamedTuple):
    """What a file of an upscaler holds.

    Attributes:
        architecture: ESRGAN or compact.
        options: How its network is built.
        names: Names of its tensors in the file, by those in the network.
    """

    architecture: str
    options: Mapping[str, int]
    names: Mapping[str, str]

    @property
    def scale(self) -> int:
        """Sides of a result are so many times those of the image."""
        return self.options.get("scale") or 2 ** self.options["doublings"] // self.options["unshuffle"]

    @property
    def outline(self) -> str:
        """Words for its scale and size."""
        size = f"{self.options.get('blocks', self.options.get('convolutions'))}"
        part = "blocks" if "blocks" in self.options else "convolutions"
        return f"{self.architecture}, {self.scale}x, {size} {part} of {self.options['features']}"

    def build(self) -> UpscalerNetwork:
        """Build the network, without values."""
        options = dict(self.options)
        with torch.device("meta"):
            if self.architecture == "compact":
                return CompactNetwork(**options)
            return RrdbNetwork(**options)


@dataclass(frozen=True, eq=False)
class Upscaler:
    """A network that upscales, ready for use.

    Attributes:
        name: The stem of its file.
        network: The network, in float32 on the CPU.
        scale: Sides of a result are so many times those of the image.
    """

    name: str
    network: UpscalerNetwork
    scale: int


def open_upscaler(path: str | PathLike[str]) -> Upscaler:
    """Open the file of an upscaler; nothing in it is executed.

    Args:
        path: A torch file (.pth, .pt) or a safetensors file of ESRGAN, BSRGAN, Real-ESRGAN or its compact networks.

    Raises:
        BadFile: It is damaged, holds another kind of network, or its tensors do not fit together.
    """
    path = Path(path).expanduser()
    outline = find_weights(open_meta(path))  # before gigabytes of another model are read
    layout = detect_upscaler(outline)
    if layout is None:
        _refuse_face_restorer(path.name, outline)
        raise BadFile(
            f"{path.name} is not an upscaler that velatura opens: give a file of ESRGAN, BSRGAN or Real-ESRGAN, or of "
            "Real-ESRGAN's compact networks, for images in colour"
        )
    state = find_weights(open_tensors(path))
    network = layout.build()
    values = {name: state[key] for name, key in layout.names.items()}
    load_network(network, values, file=path.name, model=layout.outline, keys=layout.names)
    return Upscaler(path.stem, network, layout.scale)


def detect_upscaler(state: StateDict) -> UpscalerLayout | None:
    """Tell by names and shapes which network a file holds, None for any other file.

    Args:
        state: Tensors by name, which may be on the meta device.
    """
    names = _real_esrgan_names(state)
    if FIRST_DENSE_WEIGHT in names:
        return _detect_rrdb(state, names)
    return _detect_compact(state)


def _refuse_face_restorer(file: str, state: StateDict) -> None:
    """Refuse a network that people have beside their upscalers, by its name."""
    for name, part in FACE_RESTORER_PARTS.items():
        if any(key.startswith(part) for key in state):
            raise BadFile(f"{file} is {name}, which restores faces: use it with --restore-faces, and give an upscaler")


def _detect_rrdb(state: StateDict, names: Mapping[str, str]) -> UpscalerLayout | None:
    shapes = {name: state[key].shape for name, key in names.items()}
    ends = ("conv_first.weight", FIRST_DENSE_WEIGHT, "conv_last.weight")
    first, dense, last = (shapes.get(name, torch.Size()) for name in ends)
    if not (len(first) == len(dense) == len(last) == 4) or last[0] != 3 or first[1] not in UNSHUFFLE_BY_CHANNELS:
        return None
    blocks = {match[1] for name in names if (match := DENSE_KEY.fullmatch(name))}
    doublings = sum(f"conv_up{number}.weight" in names for number in range(1, MAX_DOUBLINGS + 1))
    unshuffle = UNSHUFFLE_BY_CHANNELS[first[1]]
    if 2**doublings < unshuffle:
        return None
    options = {"features": first[0], "growth": dense[0], "blocks": len(blocks), "doublings": doublings}
    return UpscalerLayout("ESRGAN", {**options, "unshuffle": unshuffle}, names)


def _detect_compact(state: StateDict) -> UpscalerLayout | None:
    if not state or not all(COMPACT_KEY.fullmatch(key) for key in state):
        return None
    numbers = {int(match[1]) for key in state if (match := COMPACT_KEY.fullmatch(key))}
    last = max(numbers)
    first_shape, last_shape = (
        tuple(state[key].shape) if key in state else () for key in ("body.0.weight", f"body.{last}.weight")
    )
    if len(first_shape) != 4 or len(last_shape) != 4 or first_shape[1] != 3 or numbers != set(range(last + 1)):
        return None
    scale = math.isqrt(last_shape[0] // 3)
    if last_shape[0] != 3 * scale**2 or not 1 <= scale <= MAX_COMPACT_SCALE or last % 2:
        return None
    if any(state[key].ndim != 1 for key in state if key.endswith("weight") and int(key.split(".")[1]) % 2):
        return None  # without PReLU, whose kind of activation the file does not say
    options = {"features": first_shape[0], "convolutions": last // 2 - 1, "scale": scale}
    return UpscalerLayout("compact", options, {key: key for key in state})


def _real_esrgan_names(state: Iterable[str]) -> dict[str, str]:
    """Return the names in the file by Real-ESRGAN's names of the same tensors."""
    keys = list(state)
    if any(FIRST_DENSE.fullmatch(key) for key in keys):
        return _rename_first_files(keys)
    names: dict[str, str] = {}
    for key in keys:
        name = key
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        names[name] = key
    return names


def _rename_first_files(keys: list[str]) -> dict[str, str]:
    """Translate the names of ESRGAN's first files: model.0, model.1.sub, then every third, then the last two."""
    layers = {int(match["layer"]) for key in keys if (match := FIRST_NAMES.fullmatch(key))}
    last = max(layers, default=0)
    ends = {0: "conv_first", last - 2: "conv_hr", last: "conv_last"}
    names: dict[str, str] = {}
    for key in keys:
        if match := FIRST_DENSE.fullmatch(key):
            names["body.{}.rdb{}.conv{}.{}".format(*match.groups())] = key
        elif match := FIRST_TRUNK.fullmatch(key):
            names[f"conv_body.{match[2]}"] = key
        elif match := FIRST_NAMES.fullmatch(key):
            layer = int(match["layer"])
            doubling = f"conv_up{layer // 3}" if layer % 3 == 0 else key
            names[f"{ends.get(layer, doubling)}.{match['end']}"] = key
        else:
            names[key] = key
    return names
