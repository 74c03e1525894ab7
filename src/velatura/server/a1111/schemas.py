"""Requests for pictures with the fields and defaults of A1111's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_NAMED_FIELDS = 20
MAX_NAME_LENGTH = 80


def _allow_nulls(schema: dict[str, Any]) -> None:
    """Say in the OpenAPI document that null stands for a field's default."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if name not in required and {"type": "null"} not in field.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}


class A1111Request(BaseModel):
    """A request of A1111's API: null stands for a field's default, and unknown fields are named in warnings."""

    model_config = ConfigDict(
        extra="allow", allow_inf_nan=False, protected_namespaces=(), json_schema_extra=_allow_nulls
    )

    @model_validator(mode="before")
    @classmethod
    def _read_fields(cls, values: Any) -> Any:
        """Leave out nulls, which clients send for what they do not set.

        Characters that are half of a pair are refused: neither the database nor a picture can hold them.
        """
        if not isinstance(values, Mapping):
            return values
        fields: Mapping[str, Any] = values  # pyright: ignore[reportUnknownVariableType]
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise ValueError("a text is not valid Unicode, or lists are too deep: write it in UTF-8") from None
        return {name: value for name, value in fields.items() if value is not None or name not in cls.model_fields}

    def unknown_fields(self) -> list[str]:
        """Return warnings of the fields that nobody reads."""
        names = [name[:MAX_NAME_LENGTH] for name in sorted(self.model_extra or {})]
        if not names:
            return []
        shown = ", ".join(names[:MAX_NAMED_FIELDS]) + (", ..." if len(names) > MAX_NAMED_FIELDS else "")
        return [f"the request has fields that are not read: {shown}"]


class PictureRequest(A1111Request):
    """What txt2img and img2img have in common."""

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] | None = None
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: float | None = None
    denoising_strength: float | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, JsonValue] | None = None
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    firstpass_image: str | None = None
    comments: dict[str, JsonValue] | None = None
    force_task_id: str | None = None
    sampler_index: str = "Euler"
    script_name: str | None = None
    script_args: list[JsonValue] = Field(default_factory=list[JsonValue])
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    infotext: str | None = None

    @property
    def picture_count(self) -> int:
        """Return how many pictures are asked for."""
        return self.batch_size * self.n_iter


class Txt2ImgRequest(PictureRequest):
    """A request for pictures from a prompt."""

    enable_hr: bool = False
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""


class Img2ImgRequest(PictureRequest):
    """A request for pictures that begin from an image."""

    init_images: list[str] | None = None
    resize_mode: int = Field(default=0, ge=0, le=3)
    denoising_strength: float | None = 0.75
    image_cfg_scale: float | None = None
    mask: str | None = None
    mask_blur: float | None = None
    mask_blur_x: float = 4
    mask_blur_y: float = 4
    mask_round: bool = True
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None
    latent_mask: str | None = None
    include_init_images: bool = False


class PicturesAnswer(BaseModel):
    """Pictures as base64, the request, and JSON as a text that says how the pictures were made."""

    images: list[str]
    parameters: dict[str, Any]
    info: str
