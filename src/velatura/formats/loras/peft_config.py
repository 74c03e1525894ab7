"""What peft and diffusers write beside the tensors of an adapter: its alpha, how that counts, and how it turns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from velatura.errors import BadFile
from velatura.files import open_for_reading

CONFIG_FILE = "adapter_config.json"
HEADER_KEY = "lora_adapter_metadata"  # diffusers' field in a safetensors header, with keys such as unet.lora_alpha
MAX_CONFIG_BYTES = 2**22  # bytes

MAX_ALPHA = 1e30  # times a root of the rank it is still a number in float32
PeftAlpha = Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA, allow_inf_nan=False)]


class PeftConfig(BaseModel):
    """The fields of an adapter's configuration that say what its tensors mean."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: Annotated[int, Field(ge=0, le=2**16)] = 8
    lora_alpha: PeftAlpha | None = None
    alpha: PeftAlpha | None = None  # of LoHa and LoKr
    alpha_pattern: dict[str, PeftAlpha] = Field(default_factory=dict[str, float])
    use_rslora: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=64)] = 5

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read an adapter_config.json."""
        with open_for_reading(path) as file:
            return cls._from_json(path.name, file.read(MAX_CONFIG_BYTES))

    @classmethod
    def from_header(cls, file_name: str, metadata: Mapping[str, str]) -> dict[str, Self]:
        """The configurations in the header that diffusers writes, by the part of a pipeline: unet, text_encoder."""
        if HEADER_KEY not in metadata:
            return {}
        parts: dict[str, dict[str, object]] = {}
        for key, value in _parse_object(file_name, metadata[HEADER_KEY]).items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        return {part: cls._from_fields(file_name, fields) for part, fields in parts.items()}

    @classmethod
    def _from_json(cls, file_name: str, text: str | bytes) -> Self:
        return cls._from_fields(file_name, _parse_object(file_name, text))

    @classmethod
    def _from_fields(cls, file_name: str, fields: Mapping[str, object]) -> Self:
        try:
            return cls.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))[:60]
            problem = f"{field} that cannot be ({first['msg'].lower()})"
            raise BadFile(f"{file_name} has {problem}: save the adapter again") from None

    def alpha_of(self, path: str, rank: int) -> float | None:
        """The alpha of a layer as kohya's files have it, so that alpha over rank is its scale; None if it says none.

        path: of the layer, with dots. Patterns of names are those of layers whose paths end so.
        """
        pattern_alpha = next(
            (value for name, value in self.alpha_pattern.items() if _matches_pattern(path, name)), None
        )
        alpha = (
            pattern_alpha if pattern_alpha is not None else self.alpha if self.lora_alpha is None else self.lora_alpha
        )
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def _parse_object(file_name: str, text: str | bytes) -> dict[str, object]:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise BadFile(f"{file_name} has a configuration of its adapter that is no JSON object: save the adapter again")
    return {str(key): value for key, value in parsed.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _matches_pattern(path: str, pattern: str) -> bool:
    """Whether a layer is one that a pattern means, which peft takes as a regular expression at the path's end.

    Only names are understood, escaped or not, with ^ before or $ behind: a stranger's expression could take for ever.
    """
    match = re.fullmatch(r"(\^?)((?:\\?[\w.-])+?)(\$?)", pattern)
    if match is None:
        raise BadFile(f"the adapter has a pattern of layers {pattern[:60]!r} that is no plain name: write names out")
    name = match[2].replace("\\", "")
    return path == name or (not match[1] and path.endswith(f".{name}"))
