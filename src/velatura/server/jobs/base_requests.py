"""What short jobs ask for that need the base or its device: a new overlay, a description, opening and closing it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from velatura.server.jobs.dataset_requests import CaptionerName
from velatura.server.jobs.requests import ImageText, JobRequest, Name
from velatura.server.jobs.training_requests import EmbeddingOptions, HypernetOptions


class CreateRequest(JobRequest):
    """Write an overlay that is not trained yet, for trainings that begin with it."""

    kind: Literal["create"] = "create"
    overlay: Annotated[HypernetOptions | EmbeddingOptions, Field(discriminator="kind")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    overwrite: bool = Field(default=False, description="replace a file of this name")
    base: Name | None = Field(default=None, description="name of a base; none: the server's")


class DescribeRequest(JobRequest):
    """Describe an image in words."""

    kind: Literal["describe"] = "describe"
    image: ImageText
    captioner: CaptionerName = Field(default="tiny", description="tiny, blip or wd14")
    threshold: float | None = Field(default=None, ge=0, le=1)


class BaseRequest(JobRequest):
    """Open a base before it is needed, or close the one that is open."""

    kind: Literal["base"] = "base"
    is_open: bool = Field(default=True, description="open it; false: close it, which frees its memory")
    base: Name | None = Field(default=None, description="name of a base; none: the server's")
