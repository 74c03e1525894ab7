"""A recipe: what a picture is asked to be, and the record of how it was made."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.infotext import NEGATIVE, read_carried, read_infotext, write_infotext

MOST_PIXELS = 8192

# Fields that say what a picture was made with, and choose nothing
RECORDED = ("base", "base_hash", "overlay_hashes", "version")

# Fields of other programs' pictures that a prompt's tags already say, or that leave the picture as it is
HARMLESS = re.compile(r"Model|.* hash|.* hashes|VAE|User|Version|Script|. (Type|Values)|Hypernet( strength)?")

COMBINE_FIELD = "Hypernet combine"
HASH_FIELDS = {"hypernet": "Hypernet hashes"}  # by kind, named after the webui's own Lora hashes and TI hashes


def _as_carried(text: str) -> str:
    """The prompt as it comes back from a picture: no spaces around lines, no empty lines around it."""
    tidy = "\n".join(line.strip() for line in text.split("\n")).strip()
    if any(line.startswith(NEGATIVE) for line in tidy.split("\n")):
        raise ValueError(f"a line of it starts with {NEGATIVE!r}; give what follows as the negative prompt")
    return tidy


def _drawn_later(seed: object) -> object:
    return None if seed in {-1, "-1", ""} else seed


PromptText = Annotated[str, AfterValidator(_as_carried)]
Pixels = Annotated[int, Field(ge=8, le=MOST_PIXELS)]


class OverlayHash(BaseModel):
    """The file of an overlay that a picture was made with: the name its tag calls it by, and its short hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    hash: str

    @classmethod
    def of(cls, kind: str, name: str, digest: str) -> Self:
        """The hash of a file under its name as pictures carry it, without the signs that stand between entries."""
        return cls(kind=kind, name=re.sub(r"[:,]", "", name).strip(), hash=digest)


class Recipe(BaseModel):
    """How to make one picture; `generate` gives it back filled in, so that it makes the same picture again.

    guidance is how much the prompt counts against the negative prompt (classifier-free guidance), 1 being none.
    What is None is filled in: the seed is drawn, width and height are the base's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptText = Field(default="", description="what to paint")
    negative: PromptText = Field(default="", description="what to keep away from")
    steps: int = Field(default=20, ge=1, le=1000, description="steps from noise to picture")
    sampler: str = Field(default="Euler a", description="how the steps are taken")
    guidance: float = Field(
        default=7.0, allow_inf_nan=False, description="how much the prompt counts (CFG scale); 1: no guidance"
    )
    seed: Annotated[int | None, BeforeValidator(_drawn_later)] = Field(
        default=None, ge=0, lt=2**63, description="what the noise is drawn from; -1: a new one each time"
    )
    width: Pixels | None = Field(default=None, description="pixels")
    height: Pixels | None = Field(default=None, description="pixels")
    combine: Literal["sequence", "sum", "average"] = Field(
        default="sequence", description="overlays act on each other's result, or side by side: their sum or average"
    )
    base: str | None = Field(default=None, description="name of the base it was made with")
    base_hash: str | None = Field(default=None, description="the base's short hash")
    overlay_hashes: tuple[OverlayHash, ...] = Field(default=(), description="the files of the overlays it calls")
    version: str | None = Field(default=None, description="the program that made it")

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wrong(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise BadRecipe("; ".join(map(_complaint, error.errors()))) from None

    @classmethod
    def from_image(cls, path: str | os.PathLike[str]) -> Self:
        """The recipe inside a picture, ours or the webui's; raises BadRecipe where there is none."""
        text = read_carried(Path(path).expanduser())
        if not text:
            raise BadRecipe(f"{path} carries no recipe; name a picture as it was saved, or give a prompt")
        return cls.from_infotext(text)

    @classmethod
    def from_infotext(cls, text: str) -> Self:
        """Read the text that travels in pictures; warns of fields that mean something and are not read yet."""
        prompt, negative, fields = read_infotext(text)
        left = dict(fields)
        size = re.fullmatch(r"(\d+)x(\d+)", left.pop("Size", ""))
        found = {
            "prompt": prompt,
            "negative": negative,
            "steps": left.pop("Steps", None),
            "sampler": _sampler(left),
            "guidance": left.pop("CFG scale", None),
            "seed": left.pop("Seed", None),
            "width": size and size[1],
            "height": size and size[2],
            "combine": left.pop(COMBINE_FIELD, None),
            "base": left.pop("Model", None),
            "base_hash": left.pop("Model hash", None),
            "overlay_hashes": _read_hashes(left),
            "version": left.pop("Version", None),
        }
        values = {key: value for key, value in found.items() if value is not None}
        noise = left.pop("RNG", "GPU" if "seed" in values else "CPU")
        _warn_of_unread(left, noise)
        return cls.model_validate(values)

    def infotext(self) -> str:
        """The recipe as the text that the webui writes into pictures."""
        return write_infotext(self.prompt, self.negative, self.fields())

    def fields(self) -> dict[str, object]:
        """What stands in the last line of that text, in the webui's order."""
        return {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "CFG scale": int(self.guidance) if self.guidance.is_integer() else self.guidance,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}" if self.width and self.height else None,
            "Model hash": self.base_hash or None,
            "Model": self.base or None,
            "RNG": "CPU",
            COMBINE_FIELD: None if self.combine == "sequence" else self.combine,
            **self._hash_fields(),
            "Version": self.version,
        }

    def _hash_fields(self) -> dict[str, str]:
        """The hashes of overlays, "inca: 0123456789, neon: ...", in one field for each kind."""
        listed = {
            field: ", ".join(f"{each.name}: {each.hash}" for each in self.overlay_hashes if each.kind == kind)
            for kind, field in HASH_FIELDS.items()
        }
        return {field: text for field, text in listed.items() if text}

    def but(self, **changes: object) -> Self:
        """This recipe with some fields changed, and checked again."""
        return self.model_validate(self.model_dump() | changes)


def refuse_recorded(name: str) -> None:
    """Raise BadRecipe for a field that only keeps record, where one is asked for that changes the picture."""
    if name in RECORDED:
        changing = ", ".join(each for each in Recipe.model_fields if each not in RECORDED)
        raise BadRecipe(
            f"the recipe's {name} records what a picture was made with and changes nothing: "
            f"open another base, or name one of {changing}"
        )


def _read_hashes(fields: dict[str, str]) -> tuple[OverlayHash, ...]:
    """The hashes of overlays of all kinds, taken out of the fields; entries that name no hash are left out."""
    found: list[OverlayHash] = []
    for kind, field in HASH_FIELDS.items():
        entries = (entry.rpartition(":") for entry in fields.pop(field, "").split(","))
        found += [OverlayHash.of(kind, name, digest.strip()) for name, colon, digest in entries if colon]
    return tuple(found)


def _sampler(fields: dict[str, str]) -> str | None:
    """The sampler's name with its schedule in it, which newer versions of the webui write apart."""
    name, schedule = fields.pop("Sampler", None), fields.get("Schedule type")
    if name is None or schedule is None:
        return name
    if schedule == "Karras" or (schedule == "Automatic" and name == "DPM++ 2M"):
        del fields["Schedule type"]
        return f"{name} Karras"
    if schedule in {"Uniform", "Automatic"}:
        del fields["Schedule type"]
    return name


def _warn_of_unread(fields: Mapping[str, str], noise: str) -> None:
    """Say which fields would change the picture; noise from a GPU cannot be drawn again."""
    unread = [f"{key}: {value}" for key, value in fields.items() if not HARMLESS.fullmatch(key)]
    if noise != "CPU":
        unread.append(f"RNG: {noise}")
    if unread:
        message = f"not read yet: {', '.join(unread)}; the picture will not come out the same"
        warnings.warn(message, VelaturaWarning, 3)


def _complaint(error: ErrorDetails) -> str:
    """One entry of pydantic's list of errors, in our words."""
    name = str(error["loc"][0]) if error["loc"] else ""
    if name not in Recipe.model_fields:
        return f"a recipe has no {name or repr(error['input'])}; it has {', '.join(Recipe.model_fields)}"
    meaning = Recipe.model_fields[name].description
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"the recipe's {name} is {error['input']!r}: it {said} ({meaning})"
