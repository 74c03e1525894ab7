"""What jobs on files of weights ask for: merge, bake, extract, convert, pull."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from velatura.server.jobs.requests import JobRequest, Name, Number, OverlayWithStrength

FileDtype = Literal["float32", "float16", "bfloat16"]
NewName = Annotated[str, Field(min_length=1, max_length=100, description="name of the new file, without its ending")]


class OverlayWithStrengths(OverlayWithStrength):
    """An overlay of the library, and how strongly it acts in the UNet and in the text encoders."""

    text: Number | None = Field(default=None, description="strength in the text encoders, where it differs")


class MergeRequest(JobRequest):
    """Merge one to three models, or several LoRAs, into one file."""

    kind: Literal["merge"] = "merge"
    name: NewName
    models: tuple[Name, ...] = Field(default=(), max_length=3, description="A, B and C")
    loras: tuple[OverlayWithStrengths, ...] = Field(default=(), max_length=16, description="instead of models")
    strength: Number | None = None
    mode: Annotated[str, Field(max_length=50)] | None = None
    blocks: Annotated[str, Field(max_length=2000)] | None = None
    share: Number | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    against: Name | None = None
    dtype: FileDtype | None = None
    vae: Name | None = None
    discard: Annotated[str, Field(max_length=500)] = ""
    config: Literal["any", "A", "B", "C", "none"] = "any"
    metadata: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    copies_metadata: bool = True
    keeps_recipe: bool = True
    rank: int | None = Field(default=None, ge=1, le=4096, description="of LoRAs")
    tolerance: Number | None = Field(default=None, description="of LoRAs")
    base: Name | None = Field(default=None, description="the base that LoRAs are for")


class BakeRequest(JobRequest):
    """Bake overlays into the weights of a base."""

    kind: Literal["bake"] = "bake"
    name: NewName
    overlays: tuple[OverlayWithStrengths, ...] = Field(min_length=1, max_length=16)
    base: Name | None = None
    prompts: tuple[Annotated[str, Field(max_length=2000)], ...] | None = Field(
        default=None, max_length=1000, description="texts to fit by, at least four"
    )
    steps: int = Field(default=10, ge=1, le=1000)


class ExtractRequest(JobRequest):
    """Write the difference of two models as a LoRA."""

    kind: Literal["extract"] = "extract"
    name: NewName
    base: Name
    other: Name
    rank: int | None = Field(default=None, ge=1, le=4096)
    tolerance: Number | None = None
    conv_rank: int | None = Field(default=None, ge=0, le=4096)
    text: bool = True
    dtype: FileDtype = "float16"


class ConvertRequest(JobRequest):
    """Write an overlay of the library in another file format."""

    kind: Literal["convert"] = "convert"
    name: NewName
    overlay: Name
    ending: Literal["safetensors", "pt"] = "safetensors"
    dialect: Annotated[str, Field(max_length=50)] | None = None
    dtype: FileDtype | None = None


class PullRequest(JobRequest):
    """Download a model file from Civitai or the Hugging Face hub."""

    kind: Literal["pull"] = "pull"
    source: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="civitai:ID, civitai:ID@VERSION, hub:OWNER/NAME or hub:OWNER/NAME/FILE"
    )
    limit: int = Field(default=8_000_000_000, ge=1, le=10**12, description="bytes at most")
