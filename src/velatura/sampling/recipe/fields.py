"""The fields of a recipe, grouped by subject; Recipe inherits all of them."""

import re
from collections.abc import Sequence
from numbers import Real
from typing import Annotated, Literal, Self, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from velatura.card import printable_text
from velatura.errors import warn
from velatura.sampling.recipe.infotext import NEGATIVE_PREFIX
from velatura.sampling.recipe.sizes import Resolution

RANDOM_SEED_COUNT = 4294967294  # random seeds are below this number, as in A1111
MAX_SIDE_PIXELS = 8192
SEED_LIMIT = 2**63

ResizeMode = Literal["stretch", "crop", "fill", "latent"]
MaskedContent = Literal["fill", "original", "latent noise", "latent nothing"]
OverlayKind = Literal["hypernet", "lora", "embedding", "aesthetic", "difference"]  # as in velatura.overlays.KINDS
ResourceKind = Literal["lora", "hypernet"]  # of overlays that programs list without a tag
OVERLAY_KINDS: tuple[str, ...] = get_args(OverlayKind)
MAX_KIND_LENGTH, MAX_KINDS_SHOWN = 40, 5  # of unknown kinds in a warning
RandnSource = Literal["CPU", "GPU", "NV"]


def _normalize_prompt(text: str) -> str:
    """Remove spaces around lines and empty lines around the prompt, as infotext does too.

    Raises:
        ValueError: The text is not valid Unicode, or would be read as a negative prompt.
    """
    normalized = _normalize_lines(text)
    if any(line.startswith(NEGATIVE_PREFIX) for line in normalized.split("\n")):
        raise ValueError(f"has a line that starts with {NEGATIVE_PREFIX!r}; pass what follows as the negative prompt")
    return normalized


def _normalize_lines(text: str) -> str:
    """Remove spaces around lines and empty lines around a text.

    Raises:
        ValueError: The text is not valid Unicode.
    """
    normalized = "\n".join(line.strip() for line in text.split("\n")).strip()
    if surrogate := re.search("[\ud800-\udfff]", normalized):
        raise ValueError(f"holds {surrogate[0]!a}, which is not a character: write it in UTF-8")
    return normalized


def _read_seed(seed: object) -> object:
    text = seed.strip() if isinstance(seed, str) else seed
    return None if isinstance(text, Real | str) and text in (-1, "-1", "") else seed


def _parse_size(text: object) -> object:
    """Read a size such as "512x768"; a side of 0 means that it follows from the other."""
    if not isinstance(text, str):
        return text
    size_match = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text)
    if size_match is None:
        raise ValueError("should be width x height in pixels, such as 512x768")
    return tuple(map(int, size_match.groups()))


def _to_resolution(size: tuple[int, int]) -> Resolution:
    return Resolution(*size)


def _drop_empty_size(size: Resolution | None) -> Resolution | None:
    return size if size and any(size) else None


def _drop_partial_size(size: Resolution | None) -> Resolution | None:
    return size if size and all(size) else None


PromptText = Annotated[str, AfterValidator(_normalize_prompt)]
TemplateText = Annotated[str, AfterValidator(_normalize_lines)]


def read_percent(value: object) -> object:
    """Return a fraction that is written in per cent, "60%" as 0.6; anything else as it is."""
    if not isinstance(value, str) or not value.strip().endswith("%"):
        return value
    try:
        return float(value.strip().removesuffix("%")) / 100
    except ValueError:
        return value  # which the field refuses


Pixels = Annotated[int, Field(ge=8, le=MAX_SIDE_PIXELS)]
SidePixels = Annotated[int, Field(ge=0, le=MAX_SIDE_PIXELS)]
ResolutionField = Annotated[
    tuple[SidePixels, SidePixels],
    BeforeValidator(_parse_size),
    AfterValidator(_to_resolution),
    PlainSerializer(lambda size: str(Resolution(*size))),
]
Seed = Annotated[Annotated[int, Field(ge=0, lt=SEED_LIMIT)] | None, BeforeValidator(_read_seed)]
Fraction = Annotated[float, BeforeValidator(read_percent), Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OverlayHash(BaseModel):
    """A record of an overlay file that a picture was made with: its kind, the name in its tag, and its short hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: OverlayKind
    name: str
    hash: str

    @classmethod
    def of(cls, kind: str, name: str, digest: str) -> Self:
        """Return the entry for a file, with the characters that separate entries removed from its name."""
        return cls.model_validate({"kind": kind, "name": re.sub(r"[:,]", "", name).strip(), "hash": digest})


def _drop_unknown_kinds(entries: object) -> object:
    """Leave out entries for overlays of kinds that only other programs have, with a warning; keep all else as it is."""
    if not isinstance(entries, list | tuple):
        return entries
    kept: list[object] = []
    unknown: dict[str, None] = {}
    for entry in cast("Sequence[object]", entries):
        kind = _kind_of_entry(entry)
        if isinstance(kind, str) and kind not in OVERLAY_KINDS:
            unknown[printable_text(kind)[:MAX_KIND_LENGTH]] = None
        else:
            kept.append(entry)
    if unknown:
        kinds, known = ", ".join(map(repr, list(unknown)[:MAX_KINDS_SHOWN])), ", ".join(OVERLAY_KINDS)
        warn(f"overlay_hashes has files of kinds that velatura does not have ({kinds}; it has {known}): left out")
    return kept


def _kind_of_entry(entry: object) -> object:
    return cast("dict[object, object]", entry).get("kind") if isinstance(entry, dict) else None


OverlayHashes = Annotated[tuple[OverlayHash, ...], BeforeValidator(_drop_unknown_kinds)]


class OverlayResource(BaseModel):
    """An overlay that a picture was made with, and that no tag in its prompt calls.

    Attributes:
        kind: The kind of overlay that a tag for it has.
        name: The name of the model.
        version: Civitai's number of the version, "" if it is not known.
        weight: The strength.
        hash: A hash of the file, "" if it is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ResourceKind
    name: str = ""
    version: str = Field(default="", pattern=r"^[0-9]{0,12}$")
    weight: float = Field(default=1.0, allow_inf_nan=False)
    hash: str = ""

    def library_keys(self) -> list[str]:
        """Return what a library may find the file by, the surest first."""
        return list(filter(None, (f"civitai:{self.version}" if self.version else "", self.hash, self.name)))


class NoiseFields(BaseModel):
    """Fields for the noise that a picture starts from."""

    seed: Seed = Field(default=None, description="seed of the noise; -1: a new one each time")
    noise: RandnSource = Field(
        default="CPU",
        description="what draws the noise: CPU, GPU, or NV, which imitates an NVIDIA GPU anywhere",
    )
    variation_seed: Seed = Field(default=None, description="seed of other noise to mix in; -1: a new one each time")
    variation_strength: Fraction = Field(default=0.0, description="how much of the other noise to mix in")
    seed_size: Annotated[ResolutionField | None, AfterValidator(_drop_partial_size)] = Field(
        default=None, description="size of the picture whose noise is used, such as 512x512"
    )
    ensd: int = Field(default=0, ge=0, lt=SEED_LIMIT, description="added to the seed of later noise (ENSD)")


class Img2ImgFields(BaseModel):
    """Fields for img2img and inpainting; the init image itself is passed beside the recipe."""

    denoising: Fraction | None = Field(
        default=None, description="how much of the init image, or of the first pass, is replaced; none: 0.75 and 0.7"
    )
    fit: ResizeMode = Field(default="stretch", description="how the init image is resized")
    mask_blur: NonNegative = Field(default=4.0, description="blur of the mask's edge, in pixels")
    unrounded_mask: bool = Field(
        default=False, description="keep the shades of the mask, so that what is under grey changes in part"
    )
    masked_content: MaskedContent = Field(default="original", description="what the masked part starts from")
    mask_padding: int | None = Field(
        default=None, ge=0, le=MAX_SIDE_PIXELS, description="make only the masked part, with so many pixels around it"
    )
    inpainting_mask_weight: Fraction | None = Field(
        default=None,
        description="for inpainting models: how much the mask hides of the image that they read; none: 1, all",
    )
    image_guidance: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="for pix2pix models: how much the init image counts (Image CFG scale); none: 1.5",
    )


class FaceFields(BaseModel):
    """Fields for restoring faces in the picture that is made."""

    restore_faces: bool = Field(default=False, description="restore faces after painting")
    face_restorer: Annotated[str, Field(max_length=200)] | None = Field(
        default=None,
        description="what restores them: GFPGAN, CodeFormer, or a file's name in the library; none: the first there",
    )
    codeformer_weight: Fraction = Field(
        default=0.5, description="for CodeFormer: 0 for the best looks, 1 for the closest likeness"
    )


class HiresFields(BaseModel):
    """Fields for the second pass at a larger size (hires fix)."""

    hires_scale: Annotated[float, Field(ge=1, le=16)] | None = Field(
        default=None, description="make a second pass at so many times the size"
    )
    hires_size: Annotated[ResolutionField | None, AfterValidator(_drop_empty_size)] = Field(
        default=None, description="make a second pass at this size, such as 1024x0: 0 follows from the other side"
    )
    hires_steps: int = Field(default=0, ge=0, le=1000, description="steps of the second pass; 0: as in the first")
    hires_upscaler: str = Field(default="Latent", description="how the first pass is upscaled")
    hires_sampler: str | None = Field(default=None, description="sampler of the second pass; none: as in the first")
    hires_prompt: PromptText = Field(default="", description="prompt of the second pass; empty: as in the first")
    hires_negative: PromptText = Field(default="", description="negative prompt of that pass; empty: as in the first")
