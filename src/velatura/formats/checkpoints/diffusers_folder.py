"""Read bases from diffusers folders: unet/, vae/, text_encoder/ and tokenizer/ beside model_index.json."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from huggingface_hub.errors import StrictDataclassError

from velatura.base.base import Base
from velatura.base.families import Family, Prediction
from velatura.base.model_settings import build_schedule, determine_family, refuse_unsupported
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnsupportedBase, warn
from velatura.files import is_unset
from velatura.formats import vocabulary
from velatura.formats.check_texts import shorten_keys
from velatura.formats.checkpoints import INDEX_FILE, vae_file
from velatura.formats.checkpoints.build_models import build_text_encoder, build_unet, build_vae, projection_width
from velatura.formats.checkpoints.config_hints import read_config_hints, warn_of_unknown_settings
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_config import (
    ModelConfig,
    check_position_ids,
    check_text_encoders,
    text_config,
    unet_config,
    vae_config,
)
from velatura.formats.checkpoints.ldm_families import TEXT_ENCODER_LAYOUTS, TextEncoderLayout, check_input_channels
from velatura.formats.checkpoints.ldm_text import TEXT_MODEL_PREFIX
from velatura.formats.checkpoints.prediction import CallerSettings
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, TensorSources, apply_sources
from velatura.formats.json_files import read_json_object
from velatura.tensors import DAMAGED_FILE_ERRORS, Contents, meta_tensors

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# The libraries whose classes model_index.json may name. velatura never looks up a class by that name.
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
PIPELINE_PREFIX = "StableDiffusion"
# What model_index.json lists: the parts that are read, those without an effect on pictures, and settings
KNOWN_ENTRIES = frozenset(
    {"unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    | {"safety_checker", "feature_extractor", "image_encoder", "watermark"}
    | {"requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker"}
)
PIPELINE_NAME = re.compile(r"\w*Pipeline\w*", re.ASCII)
# Settings in which a config.json must agree with the shapes of the weights
SIZE_FIELDS = {
    "unet": ("block_out_channels", "cross_attention_dim", "layers_per_block"),
    "vae": ("block_out_channels",),
    "text": ("hidden_size", "num_hidden_layers"),
}


@dataclass(frozen=True)
class _ModelPlan:
    """Configuration and tensor sources of one model, before it is built."""

    config: ModelConfig
    sources: TensorSources
    contents: Contents


@dataclass(frozen=True)
class _FolderPlan:
    """Family and models of a folder, before they are built."""

    family: Family
    unet: _ModelPlan
    vae: _ModelPlan
    texts: tuple[_ModelPlan, ...]

    @classmethod
    def from_folder(cls, path: Path, scheduler: ModelConfig) -> _FolderPlan:
        """Look at configurations, names and shapes alone, and refuse folders that are not a base."""
        unet_settings = read_config(path / "unet" / "config.json")
        refuse_unsupported(str(path), unet_settings, read_config(path / "vae" / "config.json"), scheduler)
        channels = unet_settings.get("in_channels", 4)
        if not isinstance(channels, int):
            raise BadFile(f"{path} says that its UNet reads {str(channels)[:40]!r} channels: download it again")
        check_input_channels(str(path), channels)
        texts = tuple(_plan_text_encoder(path, index) for index in range(1 + (path / "text_encoder_2").is_dir()))
        unet_plan = _plan_unet(path, unet_settings, projection_width(texts[-1].config))
        check_text_encoders(str(path), [plan.config for plan in texts], unet_plan.config["cross_attention_dim"])
        vae_plan = _plan_vae(path)
        predicted = cast("Prediction", scheduler.get("prediction_type", "epsilon"))
        return cls(determine_family(unet_plan.config, vae_plan.config, predicted), unet_plan, vae_plan, texts)


def sniff(path: Path) -> bool:
    """Return True for the folder of a whole diffusers model."""
    return (path / INDEX_FILE).is_file() and (path / "unet").is_dir()


def read(
    path: Path,
    destination: Destination,
    settings: CallerSettings,
) -> Base:
    """Read a base from a diffusers folder.

    Args:
        path: The folder.
        destination: Precision and device.
        settings: What the caller says; the default name is that of the folder.

    Raises:
        BadFile: The folder is damaged or incomplete, or its configurations do not fit its weights.
        UnsupportedBase: It is another kind of model, or asks for code of its own.
    """
    scheduler = settings.overrule(_read_scheduler(path))
    with _explained_damage(path):
        plan = _FolderPlan.from_folder(path, scheduler)
        layouts = _text_layouts(plan.family, len(plan.texts))
        encoders = [
            _build_text_encoder(path, index, text, layout, destination)
            for index, (text, layout) in enumerate(zip(plan.texts, layouts, strict=True))
        ]
        return Base(
            settings.name or path.name,
            plan.family,
            unet=build_unet(plan.unet.config, plan.unet.sources, plan.unet.contents, destination),
            vae=build_vae(plan.vae.config, plan.vae.sources, plan.vae.contents, destination),
            text=TextEncoder(encoders),
            schedule=build_schedule(scheduler),
            source=plan.unet.contents.path,
            opened_from=settings.opened_from,
        )


def check_outline(path: Path) -> None:
    """Check configurations, names and shapes of a diffusers folder as `read` does, without reading weights.

    Raises:
        BadFile: The folder is damaged or incomplete, or its configurations do not fit its weights.
        UnsupportedBase: It is another kind of model, or asks for code of its own.
    """
    scheduler = _read_scheduler(path)
    with _explained_damage(path):
        plan = _FolderPlan.from_folder(path, scheduler)
        build_schedule(scheduler)
        for index in range(len(plan.texts)):
            vocabulary.check_tokenizer_settings(path / _numbered("tokenizer", index))


def _read_scheduler(path: Path) -> ModelConfig:
    """Return the scheduler's configuration of a folder that is a whole base and asks for no code."""
    refuse_custom_code(path)
    warn_of_components(path)
    if (path / "text_encoder_2").is_dir() and not (path / "text_encoder").is_dir():
        raise UnsupportedBase(f"{path} is the refiner of an SDXL, which only finishes pictures: open the SDXL itself")
    scheduler = read_config(path / "scheduler" / "scheduler_config.json")
    warn_of_unknown_settings(path / "scheduler", "scheduler", scheduler)
    return scheduler


@contextmanager
def _explained_damage(path: Path) -> Generator[None]:
    try:
        yield
    except BadFile as error:
        if path.name in str(error):
            raise
        raise BadFile(f"{path}: {error}") from None
    except (OSError, StopIteration, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        raise BadFile(
            f"{path} is not a whole Stable Diffusion folder ({_short_reason(error)}): download it again"
        ) from None


def _plan_unet(path: Path, stored_config: ModelConfig, pooled_width: int) -> _ModelPlan:
    contents = open_weights(path / "unet", "diffusion_pytorch_model")
    sources = {key: TensorSource(key) for key in contents.tensors}
    from_shapes = unet_config(apply_sources(sources, meta_tensors(contents.tensors)), pooled_width)
    warn_of_unknown_settings(path / "unet", "unet", stored_config)
    config = merge_config("unet", stored_config, from_shapes, path)
    check_input_channels(str(path), config["in_channels"])
    return _ModelPlan(config, sources, contents)


def _plan_vae(path: Path) -> _ModelPlan:
    contents = open_weights(path / "vae", "diffusion_pytorch_model")
    sources = vae_file.sources(contents)
    from_shapes = vae_config(apply_sources(sources, meta_tensors(contents.tensors)))
    stored_config = read_config(path / "vae" / "config.json")
    warn_of_unknown_settings(path / "vae", "vae", stored_config)
    config = merge_config("vae", stored_config, from_shapes, path)
    return _ModelPlan(config, sources, contents)


def _plan_text_encoder(path: Path, index: int) -> _ModelPlan:
    """Plan one of the text encoders; the second one, SDXL's, has a projection for pooled embeddings."""
    folder = path / _numbered("text_encoder", index)
    contents = open_weights(folder, "model", "pytorch_model")
    check_position_ids(str(path), contents.tensors)
    sources = _text_sources(contents.tensors, has_projection=index > 0)
    from_shapes = text_config(apply_sources(sources, meta_tensors(contents.tensors)))
    stored_config = read_config(folder / "config.json")
    warn_of_unknown_settings(folder, "text", stored_config)
    config = merge_config("text", stored_config, from_shapes, path)
    return _ModelPlan(config, sources, contents)


def _text_sources(keys: Iterable[str], *, has_projection: bool) -> TensorSources:
    weight_keys = [key for key in keys if not key.endswith("position_ids")]
    return {key if has_projection else key.removeprefix(TEXT_MODEL_PREFIX): TensorSource(key) for key in weight_keys}


def _text_layouts(family: Family, encoder_count: int) -> tuple[TextEncoderLayout, ...]:
    """Return how a base of this family uses its text encoders; a folder holds only the layers that are used."""
    if encoder_count > 1:
        return TEXT_ENCODER_LAYOUTS["SDXL"]
    return TEXT_ENCODER_LAYOUTS["SD2" if family.name == "SD2" else "SD1"]


def _build_text_encoder(
    path: Path, index: int, plan: _ModelPlan, layout: TextEncoderLayout, destination: Destination
) -> ClipTextEncoder:
    model = build_text_encoder(plan.config, plan.sources, plan.contents, destination, has_projection=index > 0)
    tokenizer = _read_tokenizer(path, index, int(plan.config["vocab_size"]))
    return ClipTextEncoder(tokenizer, model, layout.default_clip_skip, layout.has_final_norm, layout.takes_clip_skip)


def _read_tokenizer(path: Path, index: int, vocab_size: int) -> CLIPTokenizer:
    folder = path / _numbered("tokenizer", index)
    if not folder.is_dir():
        return vocabulary.find_tokenizer(path / INDEX_FILE, {}, vocab_size, pads_with_zero=index > 0)
    return vocabulary.open_tokenizer_folder(folder, vocab_size)


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index + 1}" if index else name


def merge_config(part: str, stored: ModelConfig, from_shapes: ModelConfig, path: Path) -> ModelConfig:
    """Return the settings that follow from the shapes, and from config.json only the others."""
    for key in SIZE_FIELDS[part]:
        if isinstance(stored[key], type(from_shapes[key])) and stored[key] != from_shapes[key]:
            mismatch = f"{key} {str(from_shapes[key])[:40]}, not {str(stored[key])[:40]}"
            raise BadFile(f"{path} has weights of {mismatch} in its {part}: its config.json belongs to another model")
    return read_config_hints(part, stored, from_shapes, str(path)) | from_shapes


def _short_reason(error: Exception) -> str:
    return f"without {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0][:160]


def refuse_custom_code(path: Path) -> None:
    """Refuse a folder of another pipeline, or one with a part from another library, which would need its code.

    Raises:
        BadFile: It names something else than a pipeline, or asks for code of its own.
        UnsupportedBase: It is another pipeline.
    """
    index = read_config(path / INDEX_FILE)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or not PIPELINE_NAME.fullmatch(pipeline):
        raise BadFile(f"{path} names {str(pipeline)[:60]!r} in place of a pipeline: do not trust it")
    if not pipeline.startswith(PIPELINE_PREFIX):
        raise UnsupportedBase(
            f"{path} is a {str(pipeline)[:60]!r}, not a {PIPELINE_PREFIX}Pipeline: open another folder"
        )
    for name, value in index.items():
        entry = cast("list[object]", value) if isinstance(value, list) else []
        if len(entry) == 2 and entry[0] is not None and entry[0] not in LIBRARIES:
            raise BadFile(f"{path} asks for code of its own for {name[:40]!r}, which velatura never runs: open another")


def warn_of_components(path: Path) -> None:
    """Warn of what model_index.json lists and velatura does not know or does otherwise: it is left out."""
    index = read_config(path / INDEX_FILE)
    unknown: list[str] = []
    for name, value in index.items():
        is_left_out = is_unset(value) or value == [None, None]
        if name not in KNOWN_ENTRIES and not name.startswith("_") and not is_left_out:
            unknown.append(name)
    if unknown:
        warn(
            f"{path.name}/{INDEX_FILE} lists what velatura does not know ({shorten_keys(unknown)}): it is left out, "
            "and pictures may be different"
        )
    if index.get("force_zeros_for_empty_prompt") is False and (path / "text_encoder_2").is_dir():
        warn(
            f"{path.name}/{INDEX_FILE} says that an empty negative prompt is encoded (force_zeros_for_empty_prompt): "
            "velatura replaces it by zeros, as for other SDXL, so pictures without a negative prompt may be different"
        )


def read_config(path: Path) -> ModelConfig:
    """Read a configuration, and refuse one that asks for code of its own."""
    config = read_json_object(path)
    if "auto_map" in config:
        raise BadFile(f"{path} asks for code of its own (auto_map), which velatura never runs: do not trust it")
    return config
