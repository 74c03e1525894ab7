"""Use a diffusers pipeline as a base: the same modules, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import PurePath
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from torch import nn

from velatura.base.base import Base
from velatura.base.families import Family
from velatura.base.image_condition import CONDITION_BY_CHANNELS, LATENT_CHANNELS
from velatura.base.model_settings import build_schedule, determine_family, refuse_unsupported
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import UnsupportedBase

PIPELINE_PARTS = ("unet", "vae", "scheduler")  # that every pipeline of a Stable Diffusion has
FrozenParameters = ParamSpec("FrozenParameters")
FrozenResult = TypeVar("FrozenResult")
TEXT_PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


class Pipeline(Protocol):
    """A diffusers pipeline of SD1, SD2 or SDXL: for text, image to image, inpainting, or with a ControlNet."""

    unet: Any
    vae: Any
    scheduler: Any


AnyBase = Base | Pipeline  # what functions take that need a base


def to_base(model: object, parameter: str = "base") -> Base:
    """Return a base as it is, or a base that shares the modules of a diffusers pipeline.

    The pipeline keeps working, with the same weights. Its modules are set to eval mode, and their weights no longer
    require gradients, as those of any base; `freeze_models` gives both back when a function is done. Its scheduler
    is not used, except for the noise schedule in it.

    Args:
        model: A Base, or a pipeline of SD1, SD2 or SDXL.
        parameter: Name of the caller's parameter, for messages.

    Raises:
        UnsupportedBase: It is neither, or a pipeline of another model.
    """
    if isinstance(model, Base):
        return model
    if not is_pipeline(model):
        raise UnsupportedBase(f"{parameter} is {_describe(model)}, not a base: {_advise(model)}")
    name = _pipeline_name(model)
    if _module(model, "text_encoder") is None and _module(model, "text_encoder_2") is not None:
        raise UnsupportedBase(f"{name} is the refiner of an SDXL, which only finishes pictures: give the SDXL itself")
    unet, vae = _module(model, "unet"), _module(model, "vae")
    if unet is None or vae is None or _module(model, "text_encoder") is None:
        missing = [part for part in ("unet", "vae", "text_encoder") if _module(model, part) is None]
        raise UnsupportedBase(f"{name} has no {' and no '.join(missing)}: give a whole pipeline")
    if next(unet.parameters()).device.type == "meta":
        raise UnsupportedBase(
            f"{name} keeps its weights elsewhere (the meta device, as enable_sequential_cpu_offload does): "
            "use enable_model_cpu_offload, or open its files with velatura.open_base(PATH, offload=True)"
        )
    return _share_modules(model, name, unet, vae)


def is_pipeline(model: object) -> bool:
    """Return True for an object with the parts of a diffusers pipeline of any Stable Diffusion."""
    return not isinstance(model, Base) and all(hasattr(model, part) for part in PIPELINE_PARTS)


@contextmanager
def frozen_modules(*models: nn.Module) -> Generator[None]:
    """Set models to eval mode and freeze their weights, and give both back at the end of the block.

    Only modules that were in training mode, and weights that required gradients, are touched.
    """
    training = [module for model in models for module in model.modules() if module.training]
    trainable = [weight for model in models for weight in model.parameters() if weight.requires_grad]
    try:
        for module in training:
            module.training = False
        for weight in trainable:
            weight.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for weight in trainable:
            weight.requires_grad_(True)


def freeze_models(function: Callable[FrozenParameters, FrozenResult]) -> Callable[FrozenParameters, FrozenResult]:
    """Decorate a function that takes bases and pipelines, so that it leaves their modules as they were.

    A base shares the modules of a pipeline and freezes them, but the user may be training them.
    """

    @wraps(function)
    def call_frozen(*args: FrozenParameters.args, **kwargs: FrozenParameters.kwargs) -> FrozenResult:
        with frozen_modules(*(module for value in (*args, *kwargs.values()) for module in _modules(value))):
            return function(*args, **kwargs)

    return call_frozen


def _modules(value: object) -> Iterator[nn.Module]:
    """Yield the models of a base, or those of a pipeline that a base shares; nothing of anything else."""
    if isinstance(value, Base):
        yield from value.models
    elif is_pipeline(value):
        for part in ("unet", "vae", *(encoder for _, encoder in TEXT_PARTS)):
            module = _module(value, part)
            if module is not None:
                yield module


def _share_modules(pipeline: object, name: str, unet: nn.Module, vae: nn.Module) -> Base:
    configs = [_config(part) for part in (unet, vae, getattr(pipeline, "scheduler", None))]
    unet_config, vae_config, scheduler_config = configs
    channels = unet_config.get("in_channels")
    if channels not in {LATENT_CHANNELS, *CONDITION_BY_CHANNELS}:
        raise UnsupportedBase(f"{name} has a UNet that reads {channels} channels, not 4, 8 or 9: give a plain one")
    try:
        refuse_unsupported(name, unet_config, vae_config, scheduler_config)
        schedule = build_schedule(scheduler_config)
        family = determine_family(unet_config, vae_config, scheduler_config.get("prediction_type", "epsilon"))
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedBase(f"{name} is not a Stable Diffusion that velatura knows ({error}): give another") from None
    parts: dict[str, Any] = {"unet": unet, "vae": vae}
    return Base(name, family, **parts, text=TextEncoder(_text_encoders(pipeline, family)), schedule=schedule)


def _text_encoders(pipeline: object, family: Family) -> list[ClipTextEncoder]:
    """Return the text encoders with the layers that the family uses: see ClipTextEncoder."""
    found = [
        (getattr(pipeline, tokenizer), model)
        for tokenizer, encoder in TEXT_PARTS
        if (model := _module(pipeline, encoder)) is not None
    ]
    if len(found) > 1:
        return [
            ClipTextEncoder(
                tokenizer, cast("Any", model), default_clip_skip=2, has_final_norm=False, takes_clip_skip=False
            )
            for tokenizer, model in found
        ]
    [(tokenizer, model)] = found
    return [ClipTextEncoder(tokenizer, cast("Any", model), takes_clip_skip=family.name != "SD2")]


def _module(pipeline: object, part: str) -> nn.Module | None:
    """Return a model of a pipeline without the wrapper of torch.compile, None if there is none."""
    model = getattr(pipeline, part, None)
    model = getattr(model, "_orig_mod", model)
    return model if isinstance(model, nn.Module) else None


def _config(part: object) -> Mapping[str, Any]:
    config: object = getattr(part, "config", None)
    return cast("Mapping[str, Any]", config) if isinstance(config, Mapping) else {}


def _pipeline_name(pipeline: object) -> str:
    """Return the last part of the path or name that the pipeline was loaded from, or the name of its class."""
    source = _config(pipeline).get("_name_or_path")
    return (PurePath(source).name if isinstance(source, str) else "") or type(pipeline).__name__


def _describe(model: object) -> str:
    if isinstance(model, str | PurePath):
        return repr(str(model)[:60])
    return "None" if model is None else f"of type {type(model).__name__}"


def _advise(model: object) -> str:
    if isinstance(model, str | PurePath):
        return "open it with velatura.open_base(PATH)"
    if hasattr(model, "install_hooks"):
        return "that is an overlay, and the base comes first"
    if hasattr(model, "transformer"):
        return "a pipeline with a transformer, such as SD3 or FLUX, is not supported; use SD1, SD2 or SDXL"
    return "give one of velatura.open_base(PATH) or velatura.tiny(), or a diffusers pipeline of SD1, SD2 or SDXL"
