"""What jobs on datasets ask for: check, crop, caption."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from velatura.server.jobs.requests import JobRequest, Name

CaptionerName = Annotated[str, Field(pattern=r"^[a-z0-9]+$", max_length=50)]


class CheckRequest(JobRequest):
    """Find what would stop or spoil a training on a dataset."""

    kind: Literal["check"] = "check"
    dataset: Name
    pixels: int = Field(default=512, ge=8, le=4096, description="side of the pictures in training")


class CropRequest(JobRequest):
    """Crop the pictures of a dataset into a new dataset."""

    kind: Literal["crop"] = "crop"
    dataset: Name
    name: Annotated[str, Field(min_length=1, max_length=100, description="name of the new dataset")]
    pixels: int = Field(default=512, ge=8, le=4096)
    shape: Literal["square", "buckets"] = "square"
    focus: Annotated[str, Field(max_length=50)] = "salient"
    split_below: float = Field(default=0.0, ge=0, le=1)
    overlap: float = Field(default=0.2, ge=0, lt=1)
    mirrors: bool = False


class CaptionRequest(JobRequest):
    """Write a caption for each picture of a dataset."""

    kind: Literal["caption"] = "caption"
    dataset: Name
    captioner: CaptionerName = Field(default="tiny", description="tiny, blip or wd14")
    existing: Literal["keep", "replace", "prepend", "append"] = "keep"
    before: Annotated[str, Field(max_length=1000)] = ""
    threshold: float | None = Field(default=None, ge=0, le=1)
