"""The fields of a recipe by what they are about; Recipe is all of them together."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from velatura.sampling.infotext import NEGATIVE
from velatura.sampling.sizes import Size

MOST_PIXELS = 8192
LAST_SEED = 2**63

Fit = Literal["stretch", "crop", "fill", "latent"]
MaskedContent = Literal["fill", "original", "latent noise", "latent nothing"]
NoiseSource = Literal["CPU", "GPU", "NV"]


def _as_carried(text: str) -> str:
    """The prompt as it comes back from a picture: no spaces around lines, no empty lines around it."""
    tidy = "\n".join(line.strip() for line in text.split("\n")).strip()
    if half := re.search("[\ud800-\udfff]", tidy):
        raise ValueError(f"holds {half[0]!a}, which is no letter: write it in UTF-8")
    if any(line.startswith(NEGATIVE) for line in tidy.split("\n")):
        raise ValueError(f"a line of it starts with {NEGATIVE!r}; give what follows as the negative prompt")
    return tidy


def _drawn_later(seed: object) -> object:
    return None if seed in (-1, "-1", "") else seed


def _sides(text: object) -> object:
    """Read "512x768"; a side of 0 follows the other."""
    if not isinstance(text, str):
        return text
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text)
    if found is None:
        raise ValueError("should be width x height in pixels, such as 512x768")
    return tuple(map(int, found.groups()))


def _as_size(sides: tuple[int, int]) -> Size:
    return Size(*sides)


def _any_side(size: Size | None) -> Size | None:
    return size if size and any(size) else None


def _both_sides(size: Size | None) -> Size | None:
    return size if size and all(size) else None


PromptText = Annotated[str, AfterValidator(_as_carried)]
Pixels = Annotated[int, Field(ge=8, le=MOST_PIXELS)]
Side = Annotated[int, Field(ge=0, le=MOST_PIXELS)]
Sides = Annotated[
    tuple[Side, Side], BeforeValidator(_sides), AfterValidator(_as_size), PlainSerializer(lambda size: str(Size(*size)))
]
Seed = Annotated[Annotated[int, Field(ge=0, lt=LAST_SEED)] | None, BeforeValidator(_drawn_later)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


class Noise(BaseModel):
    """What noise a picture begins with."""

    seed: Seed = Field(default=None, description="what the noise is drawn from; -1: a new one each time")
    noise: NoiseSource = Field(
        default="CPU", description="what draws it: CPU, GPU, or NV, which imitates an NVIDIA GPU anywhere"
    )
    variation_seed: Seed = Field(default=None, description="other noise to mix in; -1: a new one each time")
    variation_strength: Share = Field(default=0.0, description="how much of the other noise")
    seed_size: Annotated[Sides | None, AfterValidator(_both_sides)] = Field(
        default=None, description="the size whose noise is used, as 512x512"
    )
    ensd: int = Field(default=0, ge=0, lt=LAST_SEED, description="added to the seed of later noise (ENSD)")


class Beginning(BaseModel):
    """What becomes of an image that a picture begins from; the image itself is given beside the recipe."""

    denoising: Share | None = Field(
        default=None, description="how much of the image, or of the first pass, is painted anew; 0.75 and 0.7 if open"
    )
    fit: Fit = Field(default="stretch", description="how the image is brought to size")
    mask_blur: Amount = Field(default=4.0, description="pixels over which the mask's edge is blurred")
    masked_content: MaskedContent = Field(default="original", description="what lies under the mask at first")
    mask_padding: int | None = Field(
        default=None, ge=0, le=MOST_PIXELS, description="paint only the masked part, with so many pixels around it"
    )


class SecondPass(BaseModel):
    """A second pass at a larger size (hires fix)."""

    hires_scale: Annotated[float, Field(ge=1, le=16)] | None = Field(
        default=None, description="paint again so many times as large"
    )
    hires_size: Annotated[Sides | None, AfterValidator(_any_side)] = Field(
        default=None, description="paint again at this size, as 1024x0: 0 follows"
    )
    hires_steps: int = Field(default=0, ge=0, le=1000, description="steps of the second pass; 0: as many as the first")
    hires_upscaler: str = Field(default="Latent", description="how the first pass is enlarged")
    hires_sampler: str | None = Field(default=None, description="sampler of the second pass; none: the first's")
    hires_prompt: PromptText = Field(default="", description="prompt of the second pass; empty: the first's")
    hires_negative: PromptText = Field(default="", description="negative prompt of the second pass; empty: the first's")
