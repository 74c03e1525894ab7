"""Open overlays and bases of any format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path

import torch

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.devices import find_device, find_dtype
from velatura.base.families import PREDICTION_WORDS, Prediction, PredictionWord
from velatura.base.open_options import OpenOptions
from velatura.base.pipeline import Pipeline, to_base
from velatura.errors import BadFile, UnsupportedBase, VelaturaError
from velatura.files import suggest_similar
from velatura.formats import hub
from velatura.formats.check_metadata import families_of, warn_of_metadata
from velatura.formats.checkpoints import diffusers_folder, single_file, vae_file
from velatura.formats.checkpoints.prediction import CallerSettings, parse_prediction
from velatura.formats.checkpoints.tensor_sources import Destination
from velatura.formats.dialects import HYPERNETWORK_SUFFIXES, find_dialect
from velatura.formats.hypernetworks import hns
from velatura.formats.loras import read_lora
from velatura.formats.parts import assemble
from velatura.formats.parts.assemble import PartPaths, explain_lone_part
from velatura.formats.parts.vae_family import check_vae_family
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, open_state_dict, open_tensors

CHECKPOINT_SUFFIXES = {".safetensors", ".ckpt"}
# How far a message looks for bases in a folder that is not one, and how many it names: the hub's cache has depth 2
MAX_BASE_DEPTH, MAX_TRIED_FILES, MAX_NAMED_BASES = 3, 5, 2


@check_arguments()
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
    return read_overlay(open_tensors(path))


def read_overlay(contents: Contents) -> Overlay:
    """Build the overlay in an opened file, with all warnings that the file deserves.

    Raises:
        BadFile: The contents are not an overlay, or a damaged one.
    """
    overlay = find_dialect(contents).read(contents)
    warn_of_metadata(contents, overlay.kind, families_of(overlay))
    return overlay


def _open_member(composition: Path, name: str) -> Overlay:
    """Open the hypernetwork that a composition names, from the folder of the composition."""
    return open_overlay(hns.find_member_file(composition, name, HYPERNETWORK_SUFFIXES))


@check_arguments()
def open_base(
    path: str | PathLike[str] | Pipeline,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    unet: str | PathLike[str] | None = None,
    text: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    vae: str | PathLike[str] | None = None,
    weights: single_file.WeightsKind = "last",
    prediction: PredictionWord | None = None,
    zero_snr: bool | None = None,
    offload: bool = False,
) -> Base:
    """Open a base: Stable Diffusion 1, 2 or XL, also one for inpainting or pix2pix.

    Args:
        path: A checkpoint (.safetensors or .ckpt), a diffusers folder, or a model on the Hugging Face hub as
            hub:owner/name, hub:owner/name@revision or hub:owner/name/file. A file or folder of a UNet alone is enough
            if `text` and `vae` are given too. Or a diffusers pipeline of SD1, SD2 or SDXL, whose modules the base then
            shares and freezes; the other arguments are for files.
        dtype: Precision to compute in, such as "float16". "auto" is float16 on CUDA and MPS, bfloat16 on CPUs that
            multiply it in hardware (except for small bases), and float32 elsewhere.
        device: Device to compute on. "auto" is CUDA or MPS if there is one, and otherwise the CPU.
        unet: File or folder of another UNet: a UNet alone under the names of LDM or diffusers, or a base that holds it.
            The base then has its name and its hash, and predicts what this file says.
        text: The same for text encoders: CLIP's, under the names of transformers or OpenCLIP, or a base that holds
            them. SDXL has two: give one or both, in any order.
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
        WrongBase: The UNet, the text encoders and the autoencoder are of different families.
        UnsupportedBase: A model that velatura does not open, such as SD3, FLUX, a refiner or a depth model.
        UnknownName: An unknown precision, device, prediction or kind of weights.
        DownloadFailed: The hub does not have the model, or cannot be reached.
    """
    if not isinstance(path, str | PathLike):
        options = (dtype, device, unet, text, vae, weights, prediction, zero_snr, offload)
        if options != ("auto", "auto", None, None, None, "last", None, None, False):
            raise UnsupportedBase("a pipeline is loaded already: change it with diffusers, and give it alone")
        return to_base(path, "path")
    prediction_type = None if prediction is None else parse_prediction(prediction)
    reference = hub.parse_reference(str(path)) if str(path).startswith(hub.HUB_PREFIX) else None
    local_path = Path(path).expanduser() if reference is None else hub.fetch(str(path))
    if not local_path.exists():
        similar = suggest_similar(local_path)
        raise BadFile(f"{local_path} does not exist{similar}: give a checkpoint, a diffusers folder, or hub:owner/name")
    compute_device = find_device(device)
    parts = PartPaths(local_path, _part_path(unet), _part_paths(text), _part_path(vae), weights)
    if not parts.is_replaced:
        _refuse_part_alone(local_path)
    precision = find_dtype(dtype, compute_device, _unet_bytes(parts.unet or local_path))
    destination = Destination(precision, "cpu" if offload else compute_device)
    opened_from = str(local_path.absolute() if reference is None else path)
    # the hub's cache names folders by the hashes of their commits
    settings = CallerSettings("" if reference is None else reference.name, prediction_type, zero_snr, opened_from)
    if parts.is_replaced:
        base = assemble.read(parts, destination, settings if unet is None else replace(settings, name=""))
    elif local_path.is_dir():
        if weights != "last":
            raise UnsupportedBase(
                f"{local_path} is a folder, which holds one kind of weights: leave out weights={weights!r}"
            )
        base = diffusers_folder.read(local_path, destination, settings)
    else:
        contents, vae_contents = _open_checkpoint(local_path)
        base = single_file.read(
            contents,
            destination,
            vae=vae_contents,
            weights=weights,
            prediction_type=prediction_type,
            zero_snr=zero_snr,
            opened_from=opened_from,
        )
        warn_of_metadata(contents, "checkpoint", {base.family.name})
        if vae_contents is not None:
            check_vae_family(vae_contents, base.family, warns_of_unknown=False)
    base.open_options = _record_options(
        unet=unet, text=text, vae=vae, weights=weights, prediction=prediction_type, zero_snr=zero_snr
    )
    return base.offload(compute_device) if offload else base.to()


def _part_path(part: str | PathLike[str] | None) -> Path | None:
    """Return the path of a part, which is fetched if it is on the hub."""
    if part is None:
        return None
    path = hub.fetch(str(part)) if str(part).startswith(hub.HUB_PREFIX) else Path(part).expanduser()
    if not path.exists():
        raise BadFile(f"{path} does not exist{suggest_similar(path)}: give a file or a folder that holds the part")
    return path


def _part_paths(parts: str | PathLike[str] | Sequence[str | PathLike[str]] | None) -> tuple[Path, ...]:
    return tuple(path for part in _list_texts(parts) if (path := _part_path(part)) is not None)


def _list_texts(texts: str | PathLike[str] | Sequence[str | PathLike[str]] | None) -> Sequence[str | PathLike[str]]:
    return [texts] if isinstance(texts, str | PathLike) else texts or ()


def _record_options(
    *,
    unet: str | PathLike[str] | None,
    text: str | PathLike[str] | Sequence[str | PathLike[str]] | None,
    vae: str | PathLike[str] | None,
    weights: single_file.WeightsKind,
    prediction: Prediction | None,
    zero_snr: bool | None,
) -> OpenOptions:
    """Return the options with which a base can be opened again in the same way."""
    return OpenOptions(
        unet=_recorded_path(unet),
        text=tuple(str(_recorded_path(path)) for path in _list_texts(text)),
        vae=_recorded_path(vae),
        weights=weights,
        prediction=None if prediction is None else PREDICTION_WORDS[prediction],
        zero_snr=zero_snr,
    )


def _recorded_path(part: str | PathLike[str] | None) -> str | None:
    """Return how a part can be found again: its absolute path, or its name on the hub."""
    if part is None or str(part).startswith(hub.HUB_PREFIX):
        return None if part is None else str(part)
    return str(Path(part).expanduser().absolute())


def _refuse_part_alone(path: Path) -> None:
    """Refuse a folder or a file that is only a part of a base, and say how to use it."""
    if path.is_dir() and not diffusers_folder.sniff(path):
        explain_lone_part(path)
        raise BadFile(
            f"{path} is not a diffusers folder, which holds model_index.json and unet/: {_advise_inner(path)}"
        )


def _advise_inner(folder: Path) -> str:
    """Name the bases in a folder that is not one itself."""
    found = list(islice(_bases_inside(folder, MAX_BASE_DEPTH), MAX_NAMED_BASES + 1))
    if not found:
        return "give the path of one"
    names = " or ".join(map(str, found[:MAX_NAMED_BASES]))
    return f"it holds {'more bases' if len(found) > 1 else 'a base'}, give {names}"


def _bases_inside(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the diffusers folders inside, down to a depth, and the first checkpoints of the folder itself."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if diffusers_folder.sniff(path):
            yield path
        elif depth > 1:
            with suppress(OSError):
                yield from _bases_inside(path, depth - 1)
    if depth == MAX_BASE_DEPTH:
        files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in CHECKPOINT_SUFFIXES]
        yield from filter(_is_checkpoint, files[:MAX_TRIED_FILES])


def _is_checkpoint(path: Path) -> bool:
    try:
        return single_file.sniff(open_state_dict(path))
    except (VelaturaError, OSError):
        return False


def _open_checkpoint(path: Path) -> tuple[Contents, Contents | None]:
    """Open a checkpoint, and the VAE beside it that replaces its own."""
    contents = open_state_dict(path)
    if not single_file.sniff(contents):
        explain_lone_part(path)
        raise BadFile(f"{path.name} is not a Stable Diffusion checkpoint: give one, or a diffusers folder")
    vae_path = vae_file.find_vae_beside(path)
    return contents, None if vae_path is None else vae_file.open_vae(vae_path)


def _unet_bytes(path: Path) -> int:
    """Return the size on disk of the UNet's largest file, or of the file that holds the whole base."""
    folder = path / "unet" if (path / "unet").is_dir() else path
    files = [path] if path.is_file() else folder.iterdir()
    return max((file.stat().st_size for file in files), default=0)
