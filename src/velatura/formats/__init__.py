"""Open and save bases and overlays in every format on disk.

`DIALECTS` has one row for each format of an overlay; the first row that recognises a file reads it. Folders hold the
formats by what they store; `native` is velatura's own format. Open this file first, then `native`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

import torch

from velatura.base.base import Base
from velatura.base.devices import find_device, find_dtype
from velatura.errors import BadFile, BadOverlay, UnknownName, UnsupportedBase
from velatura.formats import difference, hub, native
from velatura.formats.checkpoints import diffusers_folder, single_file, vae_file, write_folder
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.tensor_sources import Destination
from velatura.formats.embeddings import aesthetic, read_embedding, write_embedding
from velatura.formats.hypernetworks import a1111, hns
from velatura.formats.loras import read_lora, write_diffusers, write_kohya, write_peft
from velatura.overlays.composition import Composition
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, open_state_dict, open_tensors


@dataclass(frozen=True)
class Dialect:
    """One way in which overlays of a kind are written down, any where it is ""; ending is what its files are called."""

    name: str
    kind: str
    suffix: str
    sniff: Callable[[Contents], bool]
    read: Callable[[Contents], Overlay]
    write: Callable[[Overlay, Path], None]


def _sniff_nothing(_: Contents) -> bool:
    """No: the row above of the same kind reads it too."""
    return False


DIALECTS = (  # of those for one kind with one ending, the first is written where no other is asked for
    Dialect("velatura", "difference", ".safetensors", difference.sniff, difference.read, native.write),
    Dialect("kohya", "difference", ".safetensors", _sniff_nothing, read_lora.read, write_kohya.write),  # read as a LoRA
    Dialect("kohya", "lora", ".safetensors", read_lora.sniff, read_lora.read, write_kohya.write),
    Dialect("velatura", "lora", ".safetensors", _sniff_nothing, read_lora.read, write_kohya.write),
    Dialect("diffusers", "lora", ".safetensors", _sniff_nothing, read_lora.read, write_diffusers.write),
    Dialect("peft", "lora", "", _sniff_nothing, read_lora.read, write_peft.write),
    Dialect("velatura", "", ".safetensors", native.sniff, native.read, native.write),
    Dialect("a1111", "hypernet", ".pt", a1111.sniff, a1111.read, a1111.write),
    Dialect("a1111", "aesthetic", ".pt", aesthetic.sniff, aesthetic.read, aesthetic.write),
    Dialect("a1111", "embedding", ".pt", read_embedding.sniff_a1111, read_embedding.read, read_embedding.write_a1111),
    Dialect("kohya", "embedding", ".safetensors", read_embedding.sniff_kohya, read_embedding.read, native.write),
    Dialect(
        "diffusers",
        "embedding",
        ".bin",
        read_embedding.sniff_diffusers,
        read_embedding.read,
        write_embedding.write_diffusers,
    ),
    Dialect(
        "picture", "embedding", ".png", read_embedding.sniff_picture, read_embedding.read, write_embedding.write_png
    ),
)

CHECKPOINT_SUFFIX = ".safetensors"
HYPERNETWORK_SUFFIXES = list(
    dict.fromkeys(dialect.suffix for dialect in DIALECTS if dialect.kind in {"", Hypernetwork.kind})
)


def open_overlay(path: str | PathLike[str], find: Callable[[str], Overlay] | None = None) -> Overlay:
    """Open an overlay of any kind and dialect, by what is in the file; it comes in eval mode, on the CPU.

    find: opens the hypernetworks that a composition (.hns) names; without it they are looked for beside the file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        overlay = read_lora.read_folder(path)
    elif path.suffix == hns.HNS_SUFFIX:
        overlay = hns.read(path, find or partial(_open_member, path))
    else:
        overlay = find_dialect(contents := open_tensors(path)).read(contents)
    overlay.source = path
    return overlay


def find_dialect(contents: Contents) -> Dialect:
    """The dialect that a file is written in; raises BadFile for what is none."""
    if dialect := next((candidate for candidate in DIALECTS if candidate.sniff(contents)), None):
        return dialect
    if single_file.sniff(contents):
        raise BadFile(f"{contents.path.name} is a whole checkpoint, no overlay: it is opened as a base (--base)")
    names = ", ".join(dict.fromkeys(candidate.name for candidate in DIALECTS))
    raise BadFile(f"{contents.path.name} is no overlay that is known here: {names} files are")


def _open_member(composition: Path, name: str) -> Overlay:
    """The overlay of a name in the folder of the composition that names it."""
    return open_overlay(hns.find_member_file(composition, name, HYPERNETWORK_SUFFIXES))


def save(
    overlay_or_base: Overlay | Base,
    path: str | PathLike[str],
    dialect: str | None = None,
    *,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Write an overlay, at once or not at all; the path's ending names the dialect, dialect overrules it.

    A base is written as one checkpoint under the names that other programs know (.safetensors), or as a folder in
    diffusers' layout (a path without ending, or with / at its end). dtype: another precision for the file of a base
    or of a LoRA.
    """
    if isinstance(overlay_or_base, Base):
        if dialect is not None:
            raise UnknownName(f"a base is written in no dialect such as {dialect!r}: its path says how; leave it out")
        _save_base(
            overlay_or_base,
            path,
            None if dtype is None else find_dtype(dtype, overlay_or_base.device, overlay_or_base.byte_count),
        )
        return
    if dtype is not None:
        if overlay_or_base.kind != Lora.kind:
            raise BadOverlay(
                f"only bases and LoRAs are written in another precision, no {overlay_or_base.kind}: leave dtype out"
            )
        overlay_or_base = deepcopy(overlay_or_base).to(find_dtype(dtype, torch.device("cpu"), 0))
    if isinstance(overlay_or_base, Composition):
        raise BadOverlay(
            f"{overlay_or_base.card.name or 'this'} is a composition of others: keep its .hns file, and save those"
        )
    path = Path(path).expanduser()
    _find_dialect_to_write(overlay_or_base.kind, path, dialect).write(overlay_or_base, path)


def _find_dialect_to_write(kind: str, path: Path, name: str | None) -> Dialect:
    """The dialect to write an overlay of a kind in: the one of that name, or else the one of the path's ending."""
    candidates = [candidate for candidate in DIALECTS if candidate.kind in {"", kind}]
    if name is None:
        dialect = next((candidate for candidate in candidates if candidate.suffix == path.suffix), None)
        label, given, choices = (
            f"ending of a file for a {kind}",
            path.suffix,
            [candidate.suffix for candidate in candidates if candidate.suffix],
        )
    else:
        dialect = next((candidate for candidate in candidates if candidate.name == name), None)
        label, given, choices = "dialect", name, [candidate.name for candidate in candidates]
    if dialect is None:
        raise UnknownName.with_suggestions(label, given, dict.fromkeys(choices))
    return dialect


def _save_base(base: Base, path: str | PathLike[str], dtype: torch.dtype | None) -> None:
    is_folder = str(path).endswith(("/", "\\"))
    path = Path(path).expanduser()
    if is_folder or not path.suffix or path.is_dir():
        write_folder.write(base, path, dtype=dtype)
        return
    if path.suffix != CHECKPOINT_SUFFIX:
        raise UnknownName.with_suggestions("ending of a checkpoint", path.suffix, [CHECKPOINT_SUFFIX])
    single_file.write(base, path, dtype=dtype)


def open_base(
    path: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    vae: str | PathLike[str] | None = None,
    weights: single_file.WeightsKind = "last",
    offload: bool = False,
) -> Base:
    """Open a base from one checkpoint, .safetensors or .ckpt, from a diffusers folder, or from hub:owner/name.

    device "auto" is CUDA, or MPS, where there is one; dtype "auto" is float16 there, bfloat16 on CPUs that multiply it
    (not for small bases), and float32 elsewhere. offload: keep on the device only what computes. vae: a file whose
    autoencoder is taken instead; without it the one beside a checkpoint under its stem (.vae.safetensors, .vae.pt), if
    there is one. weights: of a checkpoint, those of the last step, or their average ("ema").
    """
    if str(path).startswith(hub.HUB_PREFIX):
        local_path, name = hub.fetch(str(path)), hub.parse_reference(str(path)).name
        base = open_base(local_path, dtype=dtype, device=device, vae=vae, weights=weights, offload=offload)
        base.name = name if local_path.is_dir() else base.name  # the cache calls folders by the hashes of their commits
        base.opened_from = str(path)
        return base
    path = Path(path).expanduser()
    if not path.exists():
        raise BadFile(f"{path} does not exist: give a Stable Diffusion, its diffusers folder, or hub:owner/name")
    compute_device = find_device(device)
    if path.is_dir() and not diffusers_folder.sniff(path):
        raise BadFile(f"{path} is no diffusers folder (model_index.json, unet, vae, ...): give the path of one")
    destination = Destination(
        find_dtype(dtype, compute_device, _unet_bytes(path)), "cpu" if offload else compute_device
    )
    base = (
        _open_checkpoint(path, destination, vae, weights)
        if path.is_file()
        else _open_folder(path, destination, vae, weights)
    )
    base.opened_from = str(path.absolute())
    return base.offload(compute_device) if offload else base.to()


def _open_folder(
    path: Path, destination: Destination, vae: str | PathLike[str] | None, weights: single_file.WeightsKind
) -> Base:
    if weights != "last":
        raise UnsupportedBase(f"{path} is a folder, which holds one kind of weights: leave out weights={weights!r}")
    vae_contents = None if vae is None else _open_vae(Path(vae).expanduser())
    return _set_vae_source(diffusers_folder.read(path, destination, vae=vae_contents), vae_contents)


def _open_checkpoint(
    path: Path, destination: Destination, vae: str | PathLike[str] | None, weights: single_file.WeightsKind
) -> Base:
    contents = open_state_dict(path)
    if not single_file.sniff(contents):
        raise BadFile(f"{path.name} is no Stable Diffusion checkpoint: give one, or a diffusers folder")
    vae_path = vae_file.find_vae_beside(path) if vae is None else Path(vae).expanduser()
    vae_contents = None if vae_path is None else _open_vae(vae_path)
    return _set_vae_source(single_file.read(contents, destination, vae=vae_contents, weights=weights), vae_contents)


def _set_vae_source(base: Base, vae_contents: Contents | None) -> Base:
    """The base, knowing which file its autoencoder is from, where that is not its own."""
    base.vae_source = vae_contents.path if vae_contents else None
    return base


def _open_vae(path: Path) -> Contents:
    """A file with an autoencoder, or the folder of one in diffusers' layout."""
    return open_weights(path, "diffusion_pytorch_model") if path.is_dir() else open_state_dict(path)


def _unet_bytes(path: Path) -> int:
    """How large the UNet's weights are on disk, or all that are in one file with them."""
    files = [path] if path.is_file() else (path / "unet").iterdir()
    return max((file.stat().st_size for file in files), default=0)
