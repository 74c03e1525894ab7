"""How bases and overlays look on disk: one row here for each dialect; the first that knows a file reads it."""

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
from velatura.formats import (
    a1111_hypernetwork,
    aesthetic_pt,
    checkpoint,
    difference_file,
    diffusers_lora,
    embedding_diffusers,
    embedding_pictures,
    embeddings,
    folder,
    folder_write,
    hns,
    hub,
    kohya_lora,
    lora_files,
    native,
    peft_folder,
    vae_file,
)
from velatura.formats.folder_weights import weights as weights_in
from velatura.formats.sources import Destination
from velatura.overlays.composition import Composition
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, open_state, open_tensors


@dataclass(frozen=True)
class Dialect:
    """One way in which overlays of a kind are written down, any where it is ""; ending is what its files are called."""

    name: str
    kind: str
    ending: str
    sniff: Callable[[Contents], bool]
    read: Callable[[Contents], Overlay]
    write: Callable[[Overlay, Path], None]


def _told_above(_: Contents) -> bool:
    """No: the row above of the same kind reads it too."""
    return False


DIALECTS = (  # of those for one kind with one ending, the first is written where no other is asked for
    Dialect("velatura", "difference", ".safetensors", difference_file.sniff, difference_file.read, native.write),
    Dialect("kohya", "difference", ".safetensors", _told_above, lora_files.read, kohya_lora.save),  # read as a LoRA
    Dialect("kohya", "lora", ".safetensors", lora_files.sniff, lora_files.read, kohya_lora.save),
    Dialect("velatura", "lora", ".safetensors", _told_above, lora_files.read, kohya_lora.save),
    Dialect("diffusers", "lora", ".safetensors", _told_above, lora_files.read, diffusers_lora.save),
    Dialect("peft", "lora", "", _told_above, lora_files.read, peft_folder.save),
    Dialect("velatura", "", ".safetensors", native.sniff, native.read, native.write),
    Dialect("a1111", "hypernet", ".pt", a1111_hypernetwork.sniff, a1111_hypernetwork.read, a1111_hypernetwork.write),
    Dialect("a1111", "aesthetic", ".pt", aesthetic_pt.sniff, aesthetic_pt.read, aesthetic_pt.write),
    Dialect("a1111", "embedding", ".pt", embeddings.sniff_a1111, embeddings.read, embeddings.write),
    Dialect("kohya", "embedding", ".safetensors", embeddings.sniff_kohya, embeddings.read, native.write),
    Dialect("diffusers", "embedding", ".bin", embeddings.sniff_diffusers, embeddings.read, embedding_diffusers.write),
    Dialect("picture", "embedding", ".png", embeddings.sniff_picture, embeddings.read, embedding_pictures.write),
)

CHECKPOINT = ".safetensors"
ENDINGS = list(dict.fromkeys(each.ending for each in DIALECTS if each.kind in {"", Hypernetwork.kind}))


def open_overlay(path: str | PathLike[str], find: Callable[[str], Overlay] | None = None) -> Overlay:
    """Open an overlay of any kind and dialect, by what is in the file; it comes in eval mode, on the CPU.

    find: opens the hypernetworks that a composition (.hns) names; without it they are looked for beside the file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        overlay = lora_files.read_folder(path)
    elif path.suffix == hns.ENDING:
        overlay = hns.read(path, find or partial(_beside, path))
    else:
        overlay = dialect_of(contents := open_tensors(path)).read(contents)
    overlay.source = path
    return overlay


def dialect_of(contents: Contents) -> Dialect:
    """The dialect that a file is written in; raises BadFile for what is none."""
    if found := next((each for each in DIALECTS if each.sniff(contents)), None):
        return found
    if checkpoint.sniff(contents):
        raise BadFile(f"{contents.path.name} is a whole checkpoint, no overlay: it is opened as a base (--base)")
    known = ", ".join(dict.fromkeys(each.name for each in DIALECTS))
    raise BadFile(f"{contents.path.name} is no overlay that is known here: {known} files are")


def _beside(composition: Path, name: str) -> Overlay:
    """The overlay of a name in the folder of the composition that names it."""
    return open_overlay(hns.beside(composition, name, ENDINGS))


def save(
    thing: Overlay | Base,
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
    if isinstance(thing, Base):
        if dialect is not None:
            raise UnknownName(f"a base is written in no dialect such as {dialect!r}: its path says how; leave it out")
        _save_base(thing, path, None if dtype is None else find_dtype(dtype, thing.device, thing.byte_count))
        return
    if dtype is not None:
        if thing.kind != Lora.kind:
            raise BadOverlay(f"only bases and LoRAs are written in another precision, no {thing.kind}: leave dtype out")
        thing = deepcopy(thing).to(find_dtype(dtype, torch.device("cpu"), 0))
    if isinstance(thing, Composition):
        raise BadOverlay(f"{thing.card.name or 'this'} is a composition of others: keep its .hns file, and save those")
    path = Path(path).expanduser()
    _dialect_for(thing.kind, path, dialect).write(thing, path)


def _dialect_for(kind: str, path: Path, name: str | None) -> Dialect:
    """The dialect to write an overlay of a kind in: the one of that name, or else the one of the path's ending."""
    fit = [each for each in DIALECTS if each.kind in {"", kind}]
    if name is None:
        found = next((each for each in fit if each.ending == path.suffix), None)
        what, said, known = f"ending of a file for a {kind}", path.suffix, [each.ending for each in fit if each.ending]
    else:
        found = next((each for each in fit if each.name == name), None)
        what, said, known = "dialect", name, [each.name for each in fit]
    if found is None:
        raise UnknownName.among(what, said, dict.fromkeys(known))
    return found


def _save_base(base: Base, path: str | PathLike[str], dtype: torch.dtype | None) -> None:
    is_folder = str(path).endswith(("/", "\\"))
    path = Path(path).expanduser()
    if is_folder or not path.suffix or path.is_dir():
        folder_write.write(base, path, dtype=dtype)
        return
    if path.suffix != CHECKPOINT:
        raise UnknownName.among("ending of a checkpoint", path.suffix, [CHECKPOINT])
    checkpoint.write(base, path, dtype=dtype)


def open_base(
    path: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    vae: str | PathLike[str] | None = None,
    weights: checkpoint.Weights = "last",
    offload: bool = False,
) -> Base:
    """Open a base from one checkpoint, .safetensors or .ckpt, from a diffusers folder, or from hub:owner/name.

    device "auto" is CUDA, or MPS, where there is one; dtype "auto" is float16 there, bfloat16 on CPUs that multiply it
    (not for small bases), and float32 elsewhere. offload: keep on the device only what computes. vae: a file whose
    autoencoder is taken instead; without it the one beside a checkpoint under its stem (.vae.safetensors, .vae.pt), if
    there is one. weights: of a checkpoint, those of the last step, or their average ("ema").
    """
    if str(path).startswith(hub.PREFIX):
        kept, name = hub.fetched(str(path)), hub.read_reference(str(path)).name
        base = open_base(kept, dtype=dtype, device=device, vae=vae, weights=weights, offload=offload)
        base.name = name if kept.is_dir() else base.name  # the cache calls folders by the hashes of their commits
        base.opened_from = str(path)
        return base
    path = Path(path).expanduser()
    if not path.exists():
        raise BadFile(f"{path} does not exist: give a Stable Diffusion, its diffusers folder, or hub:owner/name")
    place = find_device(device)
    if path.is_dir() and not folder.sniff(path):
        raise BadFile(f"{path} is no diffusers folder (model_index.json, unet, vae, ...): give the path of one")
    to = Destination(find_dtype(dtype, place, _unet_bytes(path)), "cpu" if offload else place)
    base = _from_checkpoint(path, to, vae, weights) if path.is_file() else _from_folder(path, to, vae, weights)
    base.opened_from = str(path.absolute())
    return base.offload(place) if offload else base.to()


def _from_folder(path: Path, to: Destination, vae: str | PathLike[str] | None, weights: checkpoint.Weights) -> Base:
    if weights != "last":
        raise UnsupportedBase(f"{path} is a folder, which holds one kind of weights: leave out weights={weights!r}")
    other = None if vae is None else _vae_contents(Path(vae).expanduser())
    return _with_vae(folder.read(path, to, vae=other), other)


def _from_checkpoint(path: Path, to: Destination, vae: str | PathLike[str] | None, weights: checkpoint.Weights) -> Base:
    contents = open_state(path)
    if not checkpoint.sniff(contents):
        raise BadFile(f"{path.name} is no Stable Diffusion checkpoint: give one, or a diffusers folder")
    own = vae_file.beside(path) if vae is None else Path(vae).expanduser()
    other = None if own is None else _vae_contents(own)
    return _with_vae(checkpoint.read(contents, to, vae=other, weights=weights), other)


def _with_vae(base: Base, contents: Contents | None) -> Base:
    """The base, knowing which file its autoencoder is from, where that is not its own."""
    base.vae_source = contents.path if contents else None
    return base


def _vae_contents(path: Path) -> Contents:
    """A file with an autoencoder, or the folder of one in diffusers' layout."""
    return weights_in(path, "diffusion_pytorch_model") if path.is_dir() else open_state(path)


def _unet_bytes(path: Path) -> int:
    """How large the UNet's weights are on disk, or all that are in one file with them."""
    files = [path] if path.is_file() else (path / "unet").iterdir()
    return max((file.stat().st_size for file in files), default=0)
