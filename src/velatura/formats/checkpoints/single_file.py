"""Read single-file checkpoints: a whole base in one file under LDM's names, as A1111 and ComfyUI use."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from velatura.base.base import Base
from velatura.base.families import Family, Prediction
from velatura.base.model_settings import determine_family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnknownName, UnsupportedBase, choose_number, quantity, warn
from velatura.formats import vocabulary
from velatura.formats.checkpoints import prediction, vae_file
from velatura.formats.checkpoints.build_models import build_text_encoder, build_unet, build_vae
from velatura.formats.checkpoints.config_hints import (
    CONFIG_HINTS,
    CONFIG_HINTS_KEY,
    LAYER_COUNT,
    TEXT_PARTS,
    check_config_hints,
    warn_of_unknown_hints,
)
from velatura.formats.checkpoints.ema import EMA_PREFIX, find_ema_keys, has_only_ema
from velatura.formats.checkpoints.ldm_config import (
    ModelConfig,
    check_position_ids,
    check_text_encoders,
    text_config,
    unet_config,
    vae_config,
    warn_of_yaml,
)
from velatura.formats.checkpoints.ldm_families import (
    TEXT_ENCODER_LAYOUTS,
    TRAINING_LEFTOVERS,
    V_MARKER,
    ZERO_SNR_MARKER,
    TextEncoderLayout,
    check_input_channels,
    detect_family,
    refuse_scaled_weights,
)
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX, VAE_PREFIX, unet_from_ldm
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, TensorSources, apply_sources
from velatura.tensors import DAMAGED_FILE_ERRORS, Contents, meta_tensors

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

WeightsKind = Literal["last", "ema"]
WEIGHTS_KINDS = get_args(WeightsKind)

SD2_BASE_PIXELS = 512  # an SD2 that predicts noise; the family's 768 is for velocity
MAX_SHOWN_KEYS = 3
ALPHAS_KEY = "alphas_cumprod"
ALPHAS_TOLERANCE = 0.01  # above the steps of half precision, below the difference to a schedule with zero SNR


def sniff(contents: Contents) -> bool:
    """Return True if the file holds a UNet under LDM's names, or its averaged weights."""
    return any(key.startswith((UNET_PREFIX, f"{EMA_PREFIX}diffusion_model")) for key in contents.tensors)


def read(
    contents: Contents,
    destination: Destination | None = None,
    *,
    vae: Contents | None = None,
    weights: WeightsKind = "last",
    prediction_type: Prediction | None = None,
    zero_snr: bool | None = None,
    opened_from: str | None = None,
) -> Base:
    """Read a checkpoint as a base whose name is the stem of the file.

    Tensors are read one after the other, so that no more memory is taken than the base needs.

    Args:
        contents: The checkpoint, as `open_state_dict` opens it.
        destination: Precision and device; the default is float32 on the CPU.
        vae: Another file whose autoencoder replaces the checkpoint's.
        weights: "last" for the weights of the last training step, "ema" for their average.
        prediction_type: What the UNet predicts, whatever the file says; None for what the file says, or else the .yaml
            beside it, or else noise (epsilon). An SD2 that says nothing is tried out.
        zero_snr: Use a schedule to zero terminal SNR, or not, whatever the file says; None for what the file says.
        opened_from: What the user opened, for the base to remember: a path, or hub:owner/name.

    Raises:
        BadFile: The checkpoint is damaged or incomplete.
        UnsupportedBase: It is another kind of model.
        UnknownName: `weights` is neither "last" nor "ema".
    """
    name = contents.path.name
    if weights not in WEIGHTS_KINDS:
        raise UnknownName.with_suggestions("kind of weights", weights, WEIGHTS_KINDS)
    refuse_scaled_weights(name, contents.tensors)
    family_name = detect_family(name, contents.tensors.keys())
    with explain_damage(name, "checkpoint"):
        plan = _LoadPlan.from_contents(contents, family_name, vae, weights, prediction_type)
        if vae is not None and not sniff(vae):
            vae_file.warn_of_leftovers(vae, plan.vae)
        warn_of_leftovers(contents)
        if zero_snr is None:
            zero_snr = ZERO_SNR_MARKER in contents.tensors
        return plan.build(destination or Destination(), opened_from, NoiseSchedule(zero_snr=zero_snr))


def check_outline(contents: Contents) -> None:
    """Check names and shapes of a checkpoint as `read` does, without reading weights or building models.

    Raises:
        BadFile: The checkpoint is damaged or incomplete.
        UnsupportedBase: It is another kind of model.
    """
    name = contents.path.name
    refuse_scaled_weights(name, contents.tensors)
    family_name = detect_family(name, contents.tensors.keys())
    with explain_damage(name, "checkpoint"):
        _LoadPlan.from_contents(contents, family_name, None, "last", None)
    warn_of_leftovers(contents)


def check_lone_unet(contents: Contents) -> None:
    """Check names and shapes of a UNet without the other parts of a base.

    Raises:
        BadFile: It is not whole.
    """
    name, tensors = contents.path.name, meta_tensors(contents.tensors)
    with explain_damage(name, "UNet"):
        unet_config(apply_sources(unet_sources(name, tensors, "last"), tensors))


@contextmanager
def explain_damage(name: str, what: str) -> Generator[None]:
    """Turn errors of a damaged file into a BadFile that names it.

    Args:
        name: Name of the file.
        what: What it should be, such as "checkpoint".

    Raises:
        BadFile: Something in the block found damage.
    """
    try:
        yield
    except BadFile as error:
        if name in str(error):
            raise
        raise BadFile(f"{name}: {error}") from None
    except (StopIteration, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        raise BadFile(f"{name} is not a whole {what} ({_describe(error)}): download it again") from None


def _describe(error: BaseException) -> str:
    reason = f"without {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
    return reason or type(error).__name__


@dataclass(frozen=True)
class _LoadPlan:
    """Sources and configurations of all parts of a base in a checkpoint.

    Attributes:
        contents: The checkpoint.
        family_name: One of TEXT_ENCODER_LAYOUTS.
        other_vae: Another file for the autoencoder; None where the checkpoint's own is taken.
        unet, vae, text_encoders: Sources of the tensors.
        configs: Configurations by part: "unet", "vae", "text" and "text_2".
        prediction: What the caller or the file says that the UNet predicts; None if they do not say.
        yaml_prediction: What the .yaml beside the file says; None if it does not say, or if the caller does.
    """

    contents: Contents
    family_name: str
    other_vae: Contents | None
    unet: TensorSources
    vae: TensorSources
    text_encoders: tuple[TensorSources, ...]
    configs: Mapping[str, ModelConfig]
    prediction: Prediction | None
    yaml_prediction: Prediction | None

    @classmethod
    def from_contents(
        cls,
        contents: Contents,
        family_name: str,
        other_vae: Contents | None,
        weights: WeightsKind,
        prediction_type: Prediction | None,
    ) -> _LoadPlan:
        """Look at names and shapes alone, and refuse files that are not a base."""
        name, tensors = contents.path.name, meta_tensors(contents.tensors)
        predicted, in_yaml = prediction_type, None
        if prediction_type is None:
            predicted, in_yaml = prediction.read_prediction(contents), prediction.read_yaml_prediction(contents.path)
        unet = unet_sources(name, tensors, weights)
        vae = vae_file.sources(other_vae or contents)
        vae_tensors = meta_tensors(other_vae.tensors) if other_vae else tensors
        text_encoders = tuple(layout.sources(tensors) for layout in TEXT_ENCODER_LAYOUTS[family_name])
        text_configs = [text_config(apply_sources(sources, tensors)) for sources in text_encoders]
        pooled_width = int(text_configs[-1].get("projection_dim", 0))
        from_shapes: dict[str, ModelConfig] = dict(zip(TEXT_PARTS, text_configs, strict=False))
        from_shapes["unet"] = unet_config(apply_sources(unet, tensors), pooled_width)
        from_shapes["vae"] = vae_config(apply_sources(vae, vae_tensors))
        check_input_channels(name, from_shapes["unet"]["in_channels"])
        check_text_encoders(name, text_configs, from_shapes["unet"]["cross_attention_dim"])
        check_position_ids(name, contents.tensors)
        if family_name != "SDXL" and "addition_embed_type" in from_shapes["unet"]:
            raise UnsupportedBase(
                f"{name} has a UNet that reads more than the prompt's context: open a plain Stable Diffusion"
            )
        hints = _read_config_hints(contents, family_name)
        # shapes overrule hints, so that a model is never larger than its file
        for part in TEXT_PARTS[: len(text_configs)]:
            stated, found = hints[part].get(LAYER_COUNT), from_shapes[part][LAYER_COUNT]
            if stated is not None and stated != found:
                raise BadFile(f"{name} has {found} layers in a text encoder of {stated}: it is cut short or damaged")
        configs = {part: hints[part] | config for part, config in from_shapes.items()}
        return cls(contents, family_name, other_vae, unet, vae, text_encoders, configs, predicted, in_yaml)

    def build(self, destination: Destination, opened_from: str | None, schedule: NoiseSchedule) -> Base:
        """Build the models, load their tensors, and return them as a base."""
        path = self.contents.path
        family = determine_family(self.configs["unet"], self.configs["vae"], self._stated_prediction)
        unet = build_unet(self.configs["unet"], self.unet, self.contents, destination)
        vae = build_vae(self.configs["vae"], self.vae, self.other_vae or self.contents, destination)
        encoders = [
            self._build_text_encoder(index, layout, destination)
            for index, layout in enumerate(TEXT_ENCODER_LAYOUTS[self.family_name])
        ]
        if self.family_name == "SD2":
            family = self._determine_sd2_family(family, unet)
        if self.prediction is not None:
            prediction.warn_of_yaml_conflict(path, self.yaml_prediction, self.prediction)
        warn_of_yaml(path, family.scaling_factor)
        _warn_of_other_schedule(self.contents, schedule)
        return Base(
            path.stem,
            family,
            unet=unet,
            vae=vae,
            text=TextEncoder(encoders),
            schedule=schedule,
            source=path,
            vae_source=self.other_vae and self.other_vae.path,
            opened_from=opened_from,
        )

    @property
    def _stated_prediction(self) -> Prediction:
        """Return what the caller, the file or the .yaml beside it says; a checkpoint that says nothing is epsilon."""
        return self.prediction or self.yaml_prediction or "epsilon"

    def _determine_sd2_family(self, family: Family, unet: UNet2DConditionModel) -> Family:
        """Return the family with the prediction of an SD2, which is tried out where the file does not say it."""
        predicted = self._stated_prediction
        if self.prediction is None:
            tried = prediction.detect_prediction(unet.eval())
            predicted = self.yaml_prediction or tried
            prediction.warn_of_trial_conflict(self.contents.path, predicted, tried)
        family = replace(family, prediction=predicted)
        if predicted == "epsilon" and CONFIG_HINTS_KEY not in self.contents.metadata:
            return replace(family, default_pixels=SD2_BASE_PIXELS)
        return family

    def _build_text_encoder(self, index: int, layout: TextEncoderLayout, destination: Destination) -> ClipTextEncoder:
        contents, config = self.contents, self.configs[TEXT_PARTS[index]]
        sources = self.text_encoders[index]
        model = build_text_encoder(config, sources, contents, destination, has_projection=layout.has_projection)
        tokenizer = vocabulary.find_tokenizer(
            contents.path, contents.metadata, int(config["vocab_size"]), pads_with_zero=layout.is_open_clip
        )
        return ClipTextEncoder(
            tokenizer, model, layout.default_clip_skip, layout.has_final_norm, layout.takes_clip_skip
        )


def unet_sources(name: str, tensors: Mapping[str, Tensor], weights: WeightsKind) -> TensorSources:
    """Return the sources of the UNet in a checkpoint: of its last weights, or of their averages ("ema")."""
    if weights == "last" and not has_only_ema(tensors):
        return unet_from_ldm(tensors)
    ema_keys = find_ema_keys(name, tensors.keys())
    return {
        model_key: TensorSource(ema_keys[source.key], source.transform)
        for model_key, source in unet_from_ldm(ema_keys).items()
    }


def warn_of_leftovers(contents: Contents) -> None:
    """Warn of tensors in a checkpoint that belong to no part of a base and are not known to be left by training."""
    name = contents.path.name
    layouts = TEXT_ENCODER_LAYOUTS[detect_family(name, contents.tensors.keys())]
    known_prefixes = (UNET_PREFIX, VAE_PREFIX, *(layout.prefix for layout in layouts))
    leftover_keys = sorted(
        key
        for key in contents.tensors.keys() - vae_file.vae_keys(contents)
        if not key.startswith(known_prefixes)
        and key not in {V_MARKER, ZERO_SNR_MARKER}
        and not TRAINING_LEFTOVERS.match(key)
    )
    if leftover_keys:
        shown = ", ".join(repr(key[:60]) for key in leftover_keys[:MAX_SHOWN_KEYS])
        warn(
            f"{name} holds {quantity(len(leftover_keys), 'tensor')} that "
            f"{choose_number(len(leftover_keys), 'belongs', 'belong')} to no part of a base ({shown}): "
            f"{choose_number(len(leftover_keys), 'it is', 'they are')} ignored"
        )


def _warn_of_other_schedule(contents: Contents, schedule: NoiseSchedule) -> None:
    """Warn of a noise schedule inside a checkpoint, as LDM leaves it and A1111 uses it, that is not the one used."""
    if ALPHAS_KEY not in contents.tensors:
        return
    stored = contents.tensors[ALPHAS_KEY]
    expected = schedule.alphas_cumprod
    if stored.shape != expected.shape or not bool(((stored.float() - expected).abs() < ALPHAS_TOLERANCE).all()):
        warn(
            f"{contents.path.name} holds another noise schedule ({ALPHAS_KEY}) than velatura uses: check the pictures; "
            "if it ends at pure noise, open it with zero_snr=True (--zero-snr)"
        )


def _read_config_hints(contents: Contents, family_name: str) -> Mapping[str, ModelConfig]:
    """Return the hints in a file's metadata, or else those of its family."""
    if CONFIG_HINTS_KEY not in contents.metadata:
        return CONFIG_HINTS[family_name]
    stored: object = json.loads(contents.metadata[CONFIG_HINTS_KEY])
    warn_of_unknown_hints(contents.path.name, stored)
    return check_config_hints(contents.path.name, stored, CONFIG_HINTS[family_name])
