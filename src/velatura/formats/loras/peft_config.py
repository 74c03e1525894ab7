"""Configuration that peft and diffusers write beside an adapter's tensors: its alphas, and how they count."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from velatura.card import printable_text
from velatura.errors import BadFile, warn
from velatura.files import open_for_reading, parse_json

CONFIG_FILE = "adapter_config.json"
HEADER_KEY = "lora_adapter_metadata"  # diffusers' field in safetensors metadata, with keys such as unet.lora_alpha
MAX_CONFIG_BYTES = 2**22
MAX_SHOWN_LENGTH = 60  # characters of a stranger's text in a message

# Settings of peft's LoRA, LoHa, LoKr, OFT and (IA)^3 that the tensors tell too, or that only
# training reads
OTHER_SETTINGS = {
    "alora_invocation_tokens",
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "block_share",
    "coft",
    "corda_config",
    "decompose_both",
    "decompose_factor",
    "ensure_weight_tying",
    "eps",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "feedforward_modules",
    "inference_mode",
    "init_ia3_weights",
    "init_lora_weights",
    "init_weights",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "module_dropout",
    "modules_to_save",
    "monteclora_config",
    "oft_block_size",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "rank_dropout",
    "rank_dropout_scale",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_effective_conv2d",
    "use_qalora",
    "velora_config",
}

MAX_ALPHA = 1e30  # so that it is finite in float32 also when it is multiplied by a root of the rank
PeftAlpha = Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA, allow_inf_nan=False)]

# A plain name, which peft takes for a regular expression: escaped or not, with ^ before it or $ after it
LAYER_PATTERN = re.compile(r"(?P<start>\^?)(?P<name>(?:\\?[\w.-])+?)(?P<end>\$?)")


class PeftConfig(BaseModel):
    """Fields of an adapter's configuration that say what its tensors mean.

    Attributes:
        r: The rank; only its ratio to an alpha counts, as the tensors have ranks of their own.
        lora_alpha: The alpha of a LoRA; None means that nothing is scaled.
        alpha: The alpha of a LoHa or a LoKr.
        alpha_pattern: Alphas of single layers, by the end of their paths.
        use_rslora: Scale by alpha / sqrt(rank) and not by alpha / rank.
        use_cayley_neumann: OFT approximates its rotations by a Neumann series.
        num_cayley_neumann_terms: The number of terms in that series.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: Annotated[int, Field(ge=0, le=2**16)] = 8
    lora_alpha: PeftAlpha | None = None
    alpha: PeftAlpha | None = None
    alpha_pattern: dict[str, PeftAlpha] = Field(default_factory=dict[str, float])
    use_rslora: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=64)] = 5

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read an adapter_config.json.

        Raises:
            BadFile: The file is missing, too long, not a JSON object, or a value is out of range.
        """
        with open_for_reading(path) as file:
            fields = _parse_object(path.name, file.read(MAX_CONFIG_BYTES))
        unknown = fields.keys() - cls.model_fields.keys() - OTHER_SETTINGS
        if unknown:
            shown = printable_text(", ".join(sorted(unknown)))[:MAX_SHOWN_LENGTH]
            warn(f"{path.name} has settings that velatura does not know ({shown}): they have no effect")
        return cls._from_fields(path.name, fields)

    @classmethod
    def from_header(cls, file_name: str, metadata: Mapping[str, str]) -> dict[str, Self]:
        """Read the configurations in the metadata of a safetensors file that diffusers wrote.

        Args:
            file_name: Name of the file, for messages.
            metadata: The file's metadata.

        Returns:
            Configurations by the part of the pipeline, such as unet and text_encoder, or under "" for all parts: the
            method save_lora_adapter of a single model names no part. None if the file has none.

        Raises:
            BadFile: A configuration is not a JSON object, or a value is out of range.
        """
        if HEADER_KEY not in metadata:
            return {}
        parts: dict[str, dict[str, object]] = {}
        for key, value in _parse_object(file_name, metadata[HEADER_KEY]).items():
            part, _, name = key.rpartition(".")
            if name in cls.model_fields:
                parts.setdefault(part, {})[name] = value
        return {part: cls._from_fields(file_name, fields) for part, fields in parts.items()}

    @classmethod
    def _from_fields(cls, file_name: str, fields: Mapping[str, object]) -> Self:
        try:
            return cls.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))[:MAX_SHOWN_LENGTH]
            raise BadFile(
                f"{file_name} has an invalid {field} ({fault['msg'].lower()}): save the adapter again"
            ) from None

    def alpha_of(self, path: str, rank: int) -> float | None:
        """Return the alpha of a layer as kohya's files have it, so that alpha / rank is its scale.

        Args:
            path: The layer's path, with dots.
            rank: The layer's rank.

        Returns:
            The alpha, or None if the configuration has none for the layer.

        Raises:
            BadFile: alpha_pattern has a regular expression that is not a plain name.
        """
        alpha = self.alpha if self.lora_alpha is None else self.lora_alpha
        for pattern, pattern_alpha in self.alpha_pattern.items():
            if _matches_pattern(path, pattern):
                alpha = pattern_alpha
                break
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def _parse_object(file_name: str, text: str | bytes) -> dict[str, object]:
    reason = "it is not an object"
    try:
        parsed = parse_json(text)
    except (ValueError, RecursionError) as error:
        parsed, reason = None, str(error)
    if not isinstance(parsed, dict):
        raise BadFile(
            f"{file_name} has an adapter configuration that is not a JSON object ({reason}): save the adapter again"
        )
    return {str(key): value for key, value in parsed.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _matches_pattern(path: str, pattern: str) -> bool:
    """Return True if a layer's path is the pattern or ends with "." and the pattern.

    peft allows any regular expression there. Only plain names are read, since a stranger's expression may take hours.
    """
    match = LAYER_PATTERN.fullmatch(pattern)
    if match is None:
        raise BadFile(
            f"the adapter has a pattern of layers {pattern[:MAX_SHOWN_LENGTH]!r} that is not a plain name: write the "
            "names of layers instead"
        )
    name = match["name"].replace("\\", "")
    return path == name or (not match["start"] and path.endswith(f".{name}"))
