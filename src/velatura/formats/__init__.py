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
from velatura.base.families import PredictionWord
from velatura.errors import BadFile, BadOverlay, UnknownName, UnsupportedBase
from velatura.formats import difference, hub, native
from velatura.formats.checkpoints import diffusers_folder, single_file, vae_file, write_folder, write_single_file
from velatura.formats.checkpoints.prediction import parse_prediction
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
    """One format in which overlays of one kind are stored.

    Attributes:
        name: Name of the program or library that defined the format.
        kind: Kind of overlay, as `Overlay.kind` has it; "" means any kind.
        suffix: Ending of its files; "" means a folder.
        sniff: Return True for contents of this format.
        read: Build the overlay from contents that `sniff` accepted.
        write: Write an overlay of this kind to a path.
    """

    name: str
    kind: str
    suffix: str
    sniff: Callable[[Contents], bool]
    read: Callable[[Contents], Overlay]
    write: Callable[[Overlay, Path], None]


def _sniff_nothing(_: Contents) -> bool:
    """Return False: an earlier row for the same kind reads these files too."""
    return False


# Where `save` is given no dialect, it writes the first row of the overlay's kind that has the path's ending.
DIALECTS = (
    Dialect("velatura", "difference", ".safetensors", difference.sniff, difference.read, native.write),
    Dialect("kohya", "difference", ".safetensors", _sniff_nothing, read_lora.read, write_kohya.write),  # read as a LoRA
    Dialect("kohya", "lora", ".safetensors", read_lora.sniff, read_lora.read, write_kohya.write),
    Dialect("velatura", "lora", ".safetensors", _sniff_nothing, read_lora.read, write_kohya.write),
    Dialect("diffusers", "lora", ".safetensors", _sniff_nothing, read_lora.read, write_diffusers.write),
    Dialect("peft", "lora", "", _sniff_nothing, read_lora.read, write_peft.write),
    Dialect("velatura", "", ".safetensors", native.sniff, native.read, native.write),
    Dialect("a1111", "hypernet", ".pt", a1111.sniff, a1111.read, a1111.write),
    Dialect("a1111", "aesthetic", ".pt", aesthetic.sniff, aesthetic.read, aesthetic.write),
    Dialect("a1111", "embedding", ".pt", read_embedding.sniff_a1111, read_embedding.read, write_embedding.write_a1111),
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
    """Open an overlay of any kind and format.

    The content of the file decides how it is read, not its name. Nothing in the file is executed.

    Args:
        path: A file, or the folder of a PEFT adapter.
        find: Opens a hypernetwork by the name that a composition (.hns) gives it. The default looks for files of that
            name beside the composition.

    Returns:
        The overlay on the CPU, in eval mode, in the precision of its file where the format keeps one.

    Raises:
        BadFile: The file is missing, damaged, unsafe, a whole checkpoint, or of a format that velatura does not read.
        UnknownName: A composition names a hypernetwork that cannot be found.
    """
    path = Path(path).expanduser()
    overlay = _read_overlay(path, find or partial(_open_member, path))
    overlay.source = path
    return overlay


def _read_overlay(path: Path, find: Callable[[str], Overlay]) -> Overlay:
    if path.is_dir():
        return read_lora.read_folder(path)
    if path.suffix == hns.HNS_SUFFIX:
        return hns.read(path, find)
    contents = open_tensors(path)
    return find_dialect(contents).read(contents)


def _open_member(composition: Path, name: str) -> Overlay:
    """Open the hypernetwork that a composition names, from the folder of the composition."""
    return open_overlay(hns.find_member_file(composition, name, HYPERNETWORK_SUFFIXES))


def find_dialect(contents: Contents) -> Dialect:
    """Return the first dialect that recognises a file.

    Raises:
        BadFile: No dialect recognises the file; the message says so if it is a whole checkpoint.
    """
    dialect = next((candidate for candidate in DIALECTS if candidate.sniff(contents)), None)
    if dialect is not None:
        return dialect
    if single_file.sniff(contents):
        raise BadFile(f"{contents.path.name} is a whole checkpoint, not an overlay: open it as a base (--base)")
    names = ", ".join(dict.fromkeys(candidate.name for candidate in DIALECTS))
    raise BadFile(f"{contents.path.name} is not an overlay in a known format ({names}): check where it is from")


def save(
    overlay_or_base: Overlay | Base,
    path: str | PathLike[str],
    dialect: str | None = None,
    *,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Save an overlay or a base.

    The file is written beside its place and then renamed, so that a failure leaves nothing half written.

    Args:
        overlay_or_base: Any overlay except a composition, or a base.
        path: Where to write. For an overlay the ending chooses the format: ".safetensors" is velatura's own, ".pt" is
            A1111's, ".png" and ".bin" are for embeddings, a LoRA without an ending becomes the folder of a PEFT
            adapter. A base with ".safetensors" becomes one checkpoint under the names that A1111, ComfyUI and
            diffusers know; a path without an ending, or with "/" at its end, becomes a diffusers folder.
        dialect: Name of a format in DIALECTS, which overrules the ending. For overlays only.
        dtype: Precision of the file, such as "float16". For bases and LoRAs only; the default keeps their own.

    Raises:
        UnknownName: No such dialect, ending or precision, or a dialect for a base.
        BadOverlay: A composition, or `dtype` for an overlay that is not a LoRA.
        WrongBase: The format cannot hold an embedding for the two text encoders of SDXL.
        UnsupportedBase: The base has settings that the format cannot store.
        AlreadyExists: The folder for a base exists and is not empty.
        BadFile: The place cannot be written to.
    """
    if isinstance(overlay_or_base, Base):
        _save_base(overlay_or_base, path, dialect, dtype)
        return
    _save_overlay(overlay_or_base, Path(path).expanduser(), dialect, dtype)


def _save_overlay(overlay: Overlay, path: Path, dialect: str | None, dtype: str | torch.dtype | None) -> None:
    if isinstance(overlay, Composition):
        name = overlay.card.name or "this overlay"
        raise BadOverlay(f"{name} is a composition of others: keep its .hns file, and save the others")
    if dtype is not None:
        if overlay.kind != Lora.kind:
            raise BadOverlay(
                f"only bases and LoRAs can be saved in another precision, not a {overlay.kind}: leave dtype out"
            )
        overlay = deepcopy(overlay).to(find_dtype(dtype, torch.device("cpu"), 0))
    _find_dialect_to_write(overlay.kind, path, dialect).write(overlay, path)


def _find_dialect_to_write(kind: str, path: Path, name: str | None) -> Dialect:
    """Return the dialect of a name, or without one the first dialect for the path's ending."""
    candidates = [candidate for candidate in DIALECTS if candidate.kind in {"", kind}]
    candidates.reverse()  # so that the first of two rows stays in the dictionaries below
    if name is not None:
        by_name = {candidate.name: candidate for candidate in candidates}
        if name not in by_name:
            raise UnknownName.with_suggestions("dialect", name, by_name)
        return by_name[name]
    by_suffix = {candidate.suffix: candidate for candidate in candidates}
    if path.suffix not in by_suffix:
        raise UnknownName.with_suggestions(f"file ending for a {kind}", path.suffix, filter(None, by_suffix))
    return by_suffix[path.suffix]


def _save_base(base: Base, path: str | PathLike[str], dialect: str | None, dtype: str | torch.dtype | None) -> None:
    if dialect is not None:
        raise UnknownName(f"a base has no dialect such as {dialect!r}: its path chooses the format; leave dialect out")
    precision = None if dtype is None else find_dtype(dtype, base.device, base.byte_count)
    is_folder = str(path).endswith(("/", "\\"))
    path = Path(path).expanduser()
    if is_folder or not path.suffix or path.is_dir():
        write_folder.write(base, path, dtype=precision)
        return
    if path.suffix != CHECKPOINT_SUFFIX:
        raise UnknownName.with_suggestions("file ending for a checkpoint", path.suffix, [CHECKPOINT_SUFFIX])
    write_single_file.write(base, path, dtype=precision)


def open_base(
    path: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    vae: str | PathLike[str] | None = None,
    weights: single_file.WeightsKind = "last",
    prediction: PredictionWord | None = None,
    zero_snr: bool | None = None,
    offload: bool = False,
) -> Base:
    """Open a base: Stable Diffusion 1, 2 or XL.

    Args:
        path: A checkpoint (.safetensors or .ckpt), a diffusers folder, or a model on the Hugging Face hub as
            hub:owner/name, hub:owner/name@revision or hub:owner/name/file.
        dtype: Precision to compute in, such as "float16". "auto" is float16 on CUDA and MPS, bfloat16 on CPUs that
            multiply it in hardware (except for small bases), and float32 elsewhere.
        device: Device to compute on. "auto" is CUDA or MPS if there is one, and otherwise the CPU.
        vae: File or diffusers folder of another autoencoder. The default for a checkpoint is a file beside it with the
            same stem (.vae.safetensors, .vae.pt or .vae.ckpt), as in A1111, and otherwise the autoencoder inside it.
        weights: "last" for the weights of the last training step, "ema" for their average. Checkpoints only.
        prediction: "epsilon" or "v", whatever the file says: for a file that does not say what it predicts, or says it
            wrongly. By default what the file says, then what a .yaml beside it says, then epsilon. An SD2 that says
            nothing is tried out.
        zero_snr: True or False for a schedule to zero terminal SNR or without it, whatever the file says.
        offload: Keep the models in the CPU's memory and move only the one that computes to the device.

    Returns:
        The frozen base. Its name is the stem of the file, the name of the folder, or the name on the hub.

    Raises:
        BadFile: The path does not exist, is not a Stable Diffusion, or is damaged or unsafe.
        UnsupportedBase: A model that velatura does not open, such as SD3, FLUX, a refiner or an inpainting model.
        UnknownName: An unknown precision, device, prediction or kind of weights.
        DownloadFailed: The hub does not have the model, or cannot be reached.
    """
    prediction_type = None if prediction is None else parse_prediction(prediction)
    reference = hub.parse_reference(str(path)) if str(path).startswith(hub.HUB_PREFIX) else None
    local_path = Path(path).expanduser() if reference is None else hub.fetch(str(path))
    if not local_path.exists():
        raise BadFile(f"{local_path} does not exist: give a checkpoint, a diffusers folder, or hub:owner/name")
    compute_device = find_device(device)
    if local_path.is_dir() and not diffusers_folder.sniff(local_path):
        raise BadFile(
            f"{local_path} is not a diffusers folder, which holds model_index.json and unet/: give the path of one"
        )
    precision = find_dtype(dtype, compute_device, _unet_bytes(local_path))
    destination = Destination(precision, "cpu" if offload else compute_device)
    opened_from = str(local_path.absolute() if reference is None else path)
    vae_path = None if vae is None else Path(vae).expanduser()
    if local_path.is_dir():
        if weights != "last":
            raise UnsupportedBase(
                f"{local_path} is a folder, which holds one kind of weights: leave out weights={weights!r}"
            )
        # the hub's cache names folders by the hashes of their commits
        name = local_path.name if reference is None else reference.name
        base = diffusers_folder.read(
            local_path,
            destination,
            vae=None if vae_path is None else vae_file.open_vae(vae_path),
            name=name,
            prediction_type=prediction_type,
            zero_snr=zero_snr,
            opened_from=opened_from,
        )
    else:
        contents, vae_contents = _open_checkpoint(local_path, vae_path)
        base = single_file.read(
            contents,
            destination,
            vae=vae_contents,
            weights=weights,
            prediction_type=prediction_type,
            zero_snr=zero_snr,
            opened_from=opened_from,
        )
    return base.offload(compute_device) if offload else base.to()


def _open_checkpoint(path: Path, vae_path: Path | None) -> tuple[Contents, Contents | None]:
    """Open a checkpoint, and the VAE that replaces its own: the one that is named, or one beside it."""
    contents = open_state_dict(path)
    if not single_file.sniff(contents):
        raise BadFile(f"{path.name} is not a Stable Diffusion checkpoint: give one, or a diffusers folder")
    vae_path = vae_path or vae_file.find_vae_beside(path)
    return contents, None if vae_path is None else vae_file.open_vae(vae_path)


def _unet_bytes(path: Path) -> int:
    """Return the size on disk of the UNet's largest file, or of the file that holds the whole base."""
    files = [path] if path.is_file() else (path / "unet").iterdir()
    return max((file.stat().st_size for file in files), default=0)
