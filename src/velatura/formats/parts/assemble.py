"""Assemble a base from a UNet, text encoders and an autoencoder of several files and folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub.errors import StrictDataclassError

from velatura.base.base import Base
from velatura.base.families import FAMILY_BY_CROSS_WIDTH, Family, Prediction
from velatura.base.model_settings import build_schedule, determine_family, refuse_unsupported
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnsupportedBase, warn
from velatura.formats.checkpoints import diffusers_folder, prediction, vae_file
from velatura.formats.checkpoints.build_models import build_text_encoder, build_unet, build_vae
from velatura.formats.checkpoints.config_hints import CONFIG_HINTS, CONFIG_HINTS_KEY, warn_of_unknown_settings
from velatura.formats.checkpoints.ldm_config import (
    ModelConfig,
    check_text_encoders,
    text_config,
    unet_config,
    vae_config,
    warn_of_yaml,
)
from velatura.formats.checkpoints.ldm_families import (
    LONE_UNET_HINT,
    TEXT_ENCODER_LAYOUTS,
    ZERO_SNR_MARKER,
    TextEncoderLayout,
    check_input_channels,
)
from velatura.formats.checkpoints.ldm_text import PROJECTION_KEY, TEXT_MODEL_PREFIX
from velatura.formats.checkpoints.prediction import CallerSettings
from velatura.formats.checkpoints.single_file import SD2_BASE_PIXELS, WeightsKind
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSources
from velatura.formats.parts.check_vae import check_vae
from velatura.formats.parts.choose_text import NeededText, choose_texts, describe_content
from velatura.formats.parts.found_parts import FoundParts
from velatura.formats.parts.model_part import DAMAGED_PART_ERRORS, ModelPart, find_part_tokenizer

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

DEFAULT_SCHEDULER: ModelConfig = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}


@dataclass(frozen=True)
class PartPaths:
    """Paths of the parts of a base.

    Attributes:
        main: The base whose parts are taken where no other is named: a checkpoint, a folder, or a UNet alone.
        unet, texts, vae: What replaces its parts; None or empty for its own.
        weights: Which weights of a checkpoint's UNet to take.
    """

    main: Path
    unet: Path | None = None
    texts: tuple[Path, ...] = ()
    vae: Path | None = None
    weights: WeightsKind = "last"

    @property
    def is_replaced(self) -> bool:
        """Return True if any part comes from another place than the main base."""
        return self.unet is not None or bool(self.texts) or self.vae is not None


def explain_lone_part(path: Path) -> None:
    """Raise the error that says how to use a file or folder that is only a part of a base; return for anything else.

    Raises:
        BadFile: It holds text encoders or an autoencoder alone.
        UnsupportedBase: It holds a UNet alone.
    """
    try:
        found = FoundParts.open(path)
        has_unet, has_texts, has_vae = found.has_unet, bool(found.texts), found.vae is not None
    except (BadFile, OSError, *DAMAGED_PART_ERRORS):
        return
    if has_unet:
        raise UnsupportedBase(f"{path.name} is the UNet of a base alone: {LONE_UNET_HINT}")
    if has_texts or has_vae:
        part, flag = ("a text encoder", "text= (--text)") if has_texts else ("an autoencoder", "vae= (--vae)")
        raise BadFile(
            f"{path.name} is {part} of a base alone: open a whole base (--base), and give this one as its {flag}"
        )


def read(
    paths: PartPaths,
    destination: Destination,
    settings: CallerSettings,
) -> Base:
    """Read a base whose parts are in several places.

    Args:
        paths: The places.
        destination: Precision and device.
        settings: What the caller says. The default name is that of the UNet's file or folder. Where neither the caller
            nor the UNet's own file says what it predicts, it is epsilon; an SD2's UNet is tried out.

    Raises:
        BadFile: A part is missing or damaged.
        WrongBase: The parts are of different families.
        UnsupportedBase: A part of another kind of model.
    """
    try:
        assembly = _Assembly.choose(paths)
        return assembly.build(destination, settings)
    except (OSError, StrictDataclassError, *DAMAGED_PART_ERRORS) as error:
        reason = f"without {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        places = [paths.main, paths.unet, *paths.texts, paths.vae]
        names = ", ".join(path.name for path in places if path is not None)
        raise BadFile(
            f"one of {names} is not a whole part of a Stable Diffusion ({reason or type(error).__name__}): download it "
            "again"
        ) from None


@dataclass(frozen=True)
class _Assembly:
    """Chosen parts of a base, which fit together.

    Attributes:
        paths: Where they were looked for.
        found: Everything in those places, the UNet's place first.
        unet, texts, vae: The chosen parts.
    """

    paths: PartPaths
    found: tuple[FoundParts, ...]
    unet: ModelPart
    texts: tuple[ModelPart, ...]
    vae: ModelPart

    @classmethod
    def choose(cls, paths: PartPaths) -> _Assembly:
        """Choose the parts, and refuse those that are missing or do not fit together."""
        open_place = cache(FoundParts.open)  # a place that is named twice is opened, and warned of, once
        main = open_place(paths.main, paths.weights if paths.unet is None else "last")
        from_unet = main if paths.unet is None else open_place(paths.unet, paths.weights)
        text_places = [open_place(path, "last") for path in paths.texts]
        vae_path = paths.vae or _vae_beside(paths.main)
        vae_place = main if vae_path is None else open_place(vae_path, "last")
        if from_unet.unet is None:
            raise BadFile(f"{from_unet.place} holds no UNet{describe_content(from_unet)}: {UNET_HINT}")
        unet = from_unet.unet
        needed = NeededText.by(unet)
        texts = choose_texts(needed, text_places, main)
        if vae_place.vae is None:
            raise BadFile(f"{vae_place.place} holds no autoencoder{describe_content(vae_place)}: {VAE_HINT}")
        found = (from_unet, main, *text_places, vae_place)
        check_vae(unet, vae_place.vae, vae_place)
        for place in dict.fromkeys((from_unet, *text_places, vae_place)):
            place.warn_of_leftovers()
        _warn_of_settings(from_unet, (unet, *texts, vae_place.vae))
        return cls(paths, found, unet, texts, vae_place.vae)

    @cached_property
    def pooled_width(self) -> int:
        """Return the features of the pooled prompts; 0 if the UNet reads none."""
        return int(text_config(self.texts[-1].shapes).get("projection_dim", 0)) if len(self.texts) > 1 else 0

    @cached_property
    def unet_config(self) -> ModelConfig:
        """Return the configuration of the UNet."""
        config = self._settings(self.unet, unet_config(self.unet.shapes, self.pooled_width))
        check_input_channels(self.unet.place.name, config["in_channels"])
        return config

    @cached_property
    def vae_config(self) -> ModelConfig:
        """Return the configuration of the autoencoder, whose latents have the scale that the UNet was trained on."""
        return self._settings(self.vae, vae_config(self.vae.shapes))

    def _settings(self, part: ModelPart, from_shapes: ModelConfig) -> ModelConfig:
        """Return the settings that a part states, else those of a part of the same shape in the same places.

        Raises:
            BadFile: Nothing states them, and they are not those of a published family.
        """
        for candidate in (part, *self._alike(part)):
            settings = candidate.stated_settings(from_shapes)
            if settings is not None:
                return settings
        hints = CONFIG_HINTS.get(self._family_name, {}).get(part.kind)
        if hints is None:
            raise BadFile(
                f"{part.place.name} does not say its settings, such as the number of heads, and its sizes are not "
                "those of SD1, SD2 or SDXL: give the folder with its config.json"
            )
        return hints | from_shapes

    def _alike(self, part: ModelPart) -> Iterator[ModelPart]:
        """Yield the models of the same kind and shapes in places whose UNet is of the same family."""
        needed = NeededText.by(self.unet)
        for place in self.found:
            if place.unet is not None and NeededText.by(place.unet).is_same(needed):
                yield from (other for other in _parts_of_kind(place, part.kind) if _has_shape(other, part))

    @property
    def _family_name(self) -> str:
        """Return the family of the UNet by its width, "" for an unknown one."""
        return FAMILY_BY_CROSS_WIDTH.get(NeededText.by(self.unet).width, "")

    def build(self, destination: Destination, settings: CallerSettings) -> Base:
        """Build the models, load their tensors, and return them as a base."""
        scheduler = self._scheduler(settings)
        refuse_unsupported(
            str(self.unet.place), self.unet.stored or {}, self.vae.stored or {}, {**DEFAULT_SCHEDULER, **scheduler}
        )
        predicted = cast("Prediction | None", scheduler.get("prediction_type"))
        family = determine_family(self.unet_config, self.vae_config, predicted or "epsilon")
        unet = build_unet(self.unet_config, self.unet.sources, self.unet.contents, destination)
        vae = build_vae(self.vae_config, self.vae.sources, self.vae.contents, destination)
        text_configs = [text_config(part.shapes) for part in self.texts]
        names = ", ".join(dict.fromkeys(part.place.name for part in self.texts))
        check_text_encoders(names, text_configs, self.unet_config["cross_attention_dim"])
        encoders = [self._build_text_encoder(index, destination) for index in range(len(self.texts))]
        if self.unet.stored is None:
            warn_of_yaml(self.unet.contents.path, family.scaling_factor)
        if family.name == "SD2" and self.unet.stored is None:
            family = self._sd2_family(family, unet, predicted)
        elif predicted is None:
            self._warn_of_silent_unet(self.found[1])
        return Base(
            settings.name or _name_of(self.unet),
            family,
            unet=unet,
            vae=vae,
            text=TextEncoder(encoders),
            schedule=self._schedule(scheduler),
            source=self.unet.contents.path,
            vae_source=self.vae.contents.path if self.vae.contents.path != self._main_vae_path else None,
            text_sources=self._replaced_texts(),
            opened_from=settings.opened_from,
        )

    @property
    def _main_vae_path(self) -> Path | None:
        """Return the file of the autoencoder that belongs to the UNet's own base."""
        own = self.found[0]
        return own.vae.contents.path if own.is_base and own.vae else None

    def _replaced_texts(self) -> tuple[Path, ...]:
        """Return the files of the text encoders that are not those of the UNet's own base."""
        own = {part.contents.path for part in self.found[0].texts} if self.found[0].is_base else set[Path]()
        return tuple(dict.fromkeys(part.contents.path for part in self.texts if part.contents.path not in own))

    def _scheduler(self, settings: CallerSettings) -> ModelConfig:
        """Return the settings of the scheduler that the caller, the UNet's file or its folder states."""
        contents = self.unet.contents
        scheduler = dict(self.found[0].scheduler or {}) if self.unet.stored is not None else dict[str, Any]()
        if self.unet.stored is not None and scheduler:
            scheduler.setdefault("prediction_type", "epsilon")  # diffusers' default
        if ZERO_SNR_MARKER in contents.tensors:
            scheduler["rescale_betas_zero_snr"] = True
        stated = prediction.read_prediction(contents)
        in_yaml = prediction.read_yaml_prediction(contents.path) if self.unet.stored is None else None
        if stated is not None and settings.prediction_type is None:
            prediction.warn_of_yaml_conflict(contents.path, in_yaml, stated)
        predicted = stated or in_yaml or scheduler.get("prediction_type")
        if predicted is not None:
            scheduler["prediction_type"] = predicted
        return settings.overrule(scheduler)

    def _schedule(self, scheduler: ModelConfig) -> NoiseSchedule:
        return build_schedule({**DEFAULT_SCHEDULER, **scheduler})

    def _sd2_family(self, family: Family, unet: UNet2DConditionModel, predicted: Prediction | None) -> Family:
        """Return the family of an SD2, whose prediction is tried out where nothing states it."""
        predicted = predicted or prediction.detect_prediction(unet.eval())
        family = replace(family, prediction=predicted)
        if predicted == "epsilon" and CONFIG_HINTS_KEY not in self.unet.contents.metadata:
            return replace(family, default_pixels=SD2_BASE_PIXELS)
        return family

    def _warn_of_silent_unet(self, main: FoundParts) -> None:
        """Warn if a UNet's file says nothing of its prediction, and the base that it replaces predicts velocity."""
        if main.unet is None or main.unet is self.unet:
            return
        of_main = prediction.read_prediction(main.unet.contents) or (main.scheduler or {}).get("prediction_type")
        if of_main == "v_prediction":
            warn(
                f"{self.unet.place.name} does not say what it predicts, so it counts as epsilon, but "
                f"{main.place.name} predicts v: open it with prediction='v' (--prediction v) if the pictures come out "
                "wrong"
            )

    def _build_text_encoder(self, index: int, destination: Destination) -> ClipTextEncoder:
        part, layout = self.texts[index], self._layouts[index]
        sources = _model_sources(part, layout)
        part = replace(part, sources=sources)
        config = self._settings(part, text_config(part.shapes))
        model = build_text_encoder(config, sources, part.contents, destination, has_projection=layout.has_projection)
        alike = [other for place in self.found for other in place.texts if other is not part]
        tokenizer = find_part_tokenizer((part, *alike), int(config["vocab_size"]), pads_with_zero=layout.is_open_clip)
        return ClipTextEncoder(
            tokenizer, model, layout.default_clip_skip, layout.has_final_norm, layout.takes_clip_skip
        )

    @property
    def _layouts(self) -> tuple[TextEncoderLayout, ...]:
        if len(self.texts) > 1:
            return TEXT_ENCODER_LAYOUTS["SDXL"]
        return TEXT_ENCODER_LAYOUTS["SD2" if self._family_name == "SD2" else "SD1"]


UNET_HINT = "give a UNet, a checkpoint or a diffusers folder as unet= (--unet) or as the base (--base)"
VAE_HINT = "give an autoencoder, a checkpoint or a diffusers folder as vae= (--vae)"


def _parts_of_kind(place: FoundParts, kind: str) -> Iterable[ModelPart]:
    """Yield the models of a kind in a place."""
    if kind == "unet":
        return () if place.unet is None else (place.unet,)
    if kind == "vae":
        return () if place.vae is None else (place.vae,)
    return [text for text in place.texts if text.kind == kind]


def _has_shape(part: ModelPart, other: ModelPart) -> bool:
    """Return True if two models have tensors of the same names and shapes, a text encoder's projection apart."""
    ours, theirs = (
        {key.removeprefix(TEXT_MODEL_PREFIX): tensor.shape for key, tensor in model.shapes.items()}
        for model in (part, other)
    )
    ours.pop(PROJECTION_KEY, None)
    theirs.pop(PROJECTION_KEY, None)
    return ours == theirs


def _warn_of_settings(from_unet: FoundParts, parts: Iterable[ModelPart]) -> None:
    """Warn of what velatura does not know in the folder of the UNet's base, and in the settings of the chosen parts."""
    if from_unet.is_base_folder:
        diffusers_folder.warn_of_components(from_unet.place)
    for part in parts:
        if part.stored is not None:
            warn_of_unknown_settings(part.place, part.config_kind, part.stored)
    if from_unet.scheduler is not None:
        warn_of_unknown_settings(from_unet.place / "scheduler", "scheduler", from_unet.scheduler)


def _model_sources(part: ModelPart, layout: TextEncoderLayout) -> TensorSources:
    """Return a text encoder's sources by the names of the class that is built, without the layers that are not used."""
    count = layout.layers
    used = {
        key: source
        for key, source in part.sources.items()
        if count is None or not key.startswith("encoder.layers.") or int(key.split(".")[2]) < count
    }
    if layout.has_projection:
        return {key if key == PROJECTION_KEY else TEXT_MODEL_PREFIX + key: source for key, source in used.items()}
    return {key: source for key, source in used.items() if key != PROJECTION_KEY}


def _vae_beside(main: Path) -> Path | None:
    return None if main.is_dir() else vae_file.find_vae_beside(main)


def _name_of(unet: ModelPart) -> str:
    """Return the name of a base by its UNet: the stem of the file, or the name of the folder around unet/."""
    if unet.stored is None:
        return unet.place.stem
    return unet.place.parent.name if unet.place.name == "unet" else unet.place.name
