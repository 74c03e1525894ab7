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
from velatura.files import reading

CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"  # diffusers' field in a safetensors header, with keys such as unet.lora_alpha
MOST = 2**22  # bytes

GREATEST = 1e30  # times a root of the rank it is still a number in float32
Alpha = Annotated[float, Field(ge=-GREATEST, le=GREATEST, allow_inf_nan=False)]


class PeftConfig(BaseModel):
    """The fields of an adapter's configuration that say what its tensors mean."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: Annotated[int, Field(ge=0, le=2**16)] = 8
    lora_alpha: Alpha | None = None
    alpha: Alpha | None = None  # of LoHa and LoKr
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict[str, float])
    use_rslora: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=64)] = 5

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an adapter_config.json."""
        with reading(path) as file:
            return cls._parsed(path.name, file.read(MOST))

    @classmethod
    def of_header(cls, file: str, metadata: Mapping[str, str]) -> dict[str, Self]:
        """The configurations in the header that diffusers writes, by the part of a pipeline: unet, text_encoder."""
        if HEADER not in metadata:
            return {}
        parts: dict[str, dict[str, object]] = {}
        for key, value in _object(file, metadata[HEADER]).items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        return {part: cls._checked(file, fields) for part, fields in parts.items()}

    @classmethod
    def _parsed(cls, file: str, text: str | bytes) -> Self:
        return cls._checked(file, _object(file, text))

    @classmethod
    def _checked(cls, file: str, fields: Mapping[str, object]) -> Self:
        try:
            return cls.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))[:60]
            said = f"{where} that cannot be ({first['msg'].lower()})"
            raise BadFile(f"{file} has {said}: save the adapter again") from None

    def alpha_of(self, path: str, rank: int) -> float | None:
        """The alpha of a layer as kohya's files have it, so that alpha over rank is its scale; None if it says none.

        path: of the layer, with dots. Patterns of names are those of layers whose paths end so.
        """
        own = next((each for name, each in self.alpha_pattern.items() if _ends_in(path, name)), None)
        alpha = own if own is not None else self.alpha if self.lora_alpha is None else self.lora_alpha
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def _object(file: str, text: str | bytes) -> dict[str, object]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadFile(f"{file} has a configuration of its adapter that is no JSON object: save the adapter again")
    return {str(key): value for key, value in found.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _ends_in(path: str, pattern: str) -> bool:
    """Whether a layer is one that a pattern means, which peft takes as a regular expression at the path's end.

    Only names are understood, escaped or not, with ^ before or $ behind: a stranger's expression could take for ever.
    """
    found = re.fullmatch(r"(\^?)((?:\\?[\w.-])+?)(\$?)", pattern)
    if found is None:
        raise BadFile(f"the adapter has a pattern of layers {pattern[:60]!r} that is no plain name: write names out")
    name = found[2].replace("\\", "")
    return path == name or (not found[1] and path.endswith(f".{name}"))
