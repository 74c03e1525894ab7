"""From a request of A1111's API to recipes: settings, styles, samplers, infotext, and what the request leaves open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import JsonValue

from velatura.prompts.styles import Style, apply_styles
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.recipe.infotext import read_infotext
from velatura.sampling.recipe.infotext_fields import from_infotext_fields
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sampler_names import find_sampler_name, find_scheduler_name, split_sampler_name
from velatura.server.a1111.errors import a1111_not_found
from velatura.server.a1111.schemas import Img2ImgRequest, PictureRequest, Txt2ImgRequest
from velatura.server.a1111.settings import (
    FACE_RESTORER,
    FACE_RESTORERS,
    FACES,
    HYPERNETWORK,
    LORA,
    NO_OVERLAY,
    OWN_FACE_RESTORER,
    RECIPE_OPTIONS,
)
from velatura.server.errors import ApiError

RESIZE_MODES = ("stretch", "crop", "fill", "latent")
MASKED_CONTENTS = ("fill", "original", "latent noise", "latent nothing")
OWN_SCHEDULE_SAMPLERS = {"DDIM", "PLMS", "UniPC"}
FIRST_PASS_NAMES = {"", "None", "Use same sampler", "Use same checkpoint", "Use same scheduler"}
FIRST_PASS_UPSCALER = "Latent"
FIELD_BY_INFOTEXT = {  # fields of a request that an infotext fills in, by the recipe's
    "prompt": "prompt",
    "negative": "negative_prompt",
    "steps": "steps",
    "sampler": "sampler_name",
    "scheduler": "scheduler",
    "guidance": "cfg_scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "denoising": "denoising_strength",
    "eta": "eta",
    "churn": "s_churn",
    "churn_from": "s_tmin",
    "churn_to": "s_tmax",
    "churn_noise": "s_noise",
    "skip_negative_below": "s_min_uncond",
    "tiling": "tiling",
    "restore_faces": "restore_faces",
    "hires_scale": "hr_scale",
    "hires_steps": "hr_second_pass_steps",
    "hires_upscaler": "hr_upscaler",
    "hires_sampler": "hr_sampler_name",
    "hires_prompt": "hr_prompt",
    "hires_negative": "hr_negative_prompt",
}
OPTION_BY_RECIPE_FIELD = {
    "clip_skip": "CLIP_stop_at_last_layers",
    "noise": "randn_source",
    "ensd": "eta_noise_seed_delta",
}


class RecipeParts(NamedTuple):
    """A recipe, and what the request asks for and does not get."""

    recipe: Recipe
    warnings: list[str]


def make_recipe(
    request: PictureRequest, options: Mapping[str, JsonValue], styles: Mapping[str, Style], *, has_mask: bool
) -> RecipeParts:
    """Return the recipe of a request.

    Args:
        request: The request, with what its infotext fills in.
        options: The settings, with those that the request overrides.
        styles: Styles by name.
        has_mask: A mask is given with an image.

    Raises:
        ApiError: The sampler does not exist, or another value is not one of A1111's.
        BadRecipe: A field is out of range.
    """
    warnings = [*request.unknown_fields(), *_unsupported_fields(request)]
    fields = _fields_of_options(options)
    fields |= _prompts(request, options, styles, warnings)
    fields |= _sampler(request, options, warnings)
    fields |= {
        "steps": request.steps,
        "guidance": request.cfg_scale,
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
    }
    if request.subseed_strength:
        fields |= {"variation_seed": request.subseed, "variation_strength": request.subseed_strength}
    if request.seed_resize_from_w > 0 and request.seed_resize_from_h > 0:
        fields["seed_size"] = (request.seed_resize_from_w, request.seed_resize_from_h)
    given = {
        "tiling": request.tiling,
        "churn": request.s_churn,
        "churn_from": request.s_tmin,
        "churn_to": request.s_tmax,
        "churn_noise": request.s_noise,
        "skip_negative_below": request.s_min_uncond,
    }
    fields |= {name: value for name, value in given.items() if value is not None}
    fields |= _face_fields(request, options, warnings)
    if isinstance(request, Txt2ImgRequest):
        fields |= _hires_fields(request, str(fields["sampler"]), fields.get("scheduler"), warnings)
    if isinstance(request, Img2ImgRequest):
        fields |= _img2img_fields(request, options, warnings, has_mask=has_mask)
    if not isinstance(request, Img2ImgRequest):
        for name in ("noise_multiplier", "extra_noise"):  # for init images only
            fields.pop(name, None)
    return RecipeParts(Recipe.model_validate(fields), warnings)


def fill_from_infotext(request: PictureRequest) -> tuple[PictureRequest, dict[str, JsonValue]]:
    """Return a request with the fields that it leaves open filled from its infotext, and the settings in it.

    Warns of what the infotext says and is not supported.
    """
    if not request.infotext:
        return request, {}
    prompt, negative, infotext_fields = read_infotext(request.infotext)
    found = from_infotext_fields(infotext_fields, f"{prompt}\n{negative}")
    found |= {"prompt": prompt, "negative": negative}
    fields: dict[str, Any] = {
        FIELD_BY_INFOTEXT[name]: value for name, value in found.items() if name in FIELD_BY_INFOTEXT
    }
    if isinstance(request, Txt2ImgRequest) and ("hires_scale" in found or "hires_size" in found):
        fields["enable_hr"] = True
    sizes = re.fullmatch(r"(\d+)x(\d+)", str(found.get("hires_size", "")))
    if sizes:
        fields |= {"hr_resize_x": sizes[1], "hr_resize_y": sizes[2]}
    given = request.model_dump(include=request.model_fields_set, exclude={"infotext"})
    known = {name: value for name, value in fields.items() if name in type(request).model_fields}
    try:
        filled = type(request).model_validate(known | given)
    except ValueError:
        raise ApiError(422, "bad_infotext", "the infotext has a value that cannot be read", "infotext") from None
    return filled, _options_of_infotext(found)


def _options_of_infotext(found: Mapping[str, object]) -> dict[str, JsonValue]:
    """Return the settings that an infotext says, of those that no field of a request has."""
    options: dict[str, JsonValue] = {
        option: str(found[name]) if name == "noise" else int(str(found[name]))
        for name, option in OPTION_BY_RECIPE_FIELD.items()
        if name in found and (name == "noise" or str(found[name]).isdigit())
    }
    if "face_restorer" in found:
        restorer = str(found["face_restorer"])
        options[FACE_RESTORER] = FACE_RESTORERS.get(restorer.lower(), restorer)
    if "codeformer_weight" in found:
        options["code_former_weight"] = str(found["codeformer_weight"])
    return options


def _face_fields(request: PictureRequest, options: Mapping[str, JsonValue], warnings: list[str]) -> dict[str, Any]:
    """Return what restores faces, nothing if they are not restored; warn if a request asks for it in vain."""
    restores_faces = options[FACES] if request.restore_faces is None else request.restore_faces
    restorer = str(options[FACE_RESTORER])
    if restores_faces and restorer in NO_OVERLAY:
        warnings.append(f"faces are not restored: the setting {FACE_RESTORER} is None, choose CodeFormer or GFPGAN")
    if not restores_faces or restorer in NO_OVERLAY:
        return {}
    fields: dict[str, Any] = {
        "restore_faces": True,
        "face_restorer": None if restorer == OWN_FACE_RESTORER else restorer,
    }
    return fields if restorer == "GFPGAN" else fields | {"codeformer_weight": options["code_former_weight"]}


def _fields_of_options(options: Mapping[str, JsonValue]) -> dict[str, Any]:
    return {
        option.field: options[name] for name, option in RECIPE_OPTIONS.items() if options[name] != option.default
    } | {"noise": options["randn_source"]}


def _prompts(
    request: PictureRequest, options: Mapping[str, JsonValue], styles: Mapping[str, Style], warnings: list[str]
) -> dict[str, Any]:
    """Return both prompts with styles and with the tags of the settings."""
    unknown = [name for name in request.styles or () if name not in styles and name not in NO_OVERLAY]
    if unknown:
        warnings.append(f"no style is called {', '.join(unknown[:5])[:200]}: it adds nothing")
    chosen = [styles[name] for name in request.styles or () if name in styles]
    prompt, negative = apply_styles(request.prompt, request.negative_prompt, chosen)
    if request.disable_extra_networks:
        return {"prompt": TAG_PATTERN.sub("", prompt), "negative": negative}
    hypernetwork, lora = str(options[HYPERNETWORK]), str(options[LORA])
    tags = [
        ("hypernet", hypernetwork, options["sd_hypernetwork_strength"]),
        ("lora", lora, 1.0),
    ]
    mentioned = {(tag["kind"], tag["arguments"].split(":")[0]) for tag in TAG_PATTERN.finditer(prompt)}
    for kind, name, strength in tags:
        if name not in NO_OVERLAY and (kind, name) not in mentioned:
            prompt += f" <{kind}:{name}:{strength}>"
    return {"prompt": prompt, "negative": negative}


def _sampler(request: PictureRequest, options: Mapping[str, JsonValue], warnings: list[str]) -> dict[str, Any]:
    """Return sampler, scheduler and eta; a scheduler at the end of the sampler's name counts before others."""
    name = request.sampler_name or request.sampler_index
    sampler, scheduler = split_sampler(name)
    asked = request.scheduler or str(options["k_sched_type"])
    if scheduler is None:
        scheduler = find_scheduler_name(asked)
        if scheduler is None:
            warnings.append(f"no scheduler is called {asked[:80]}: Automatic is used")
            scheduler = "Automatic"
    default_eta = options["eta_ddim"] if sampler == "DDIM" else options["eta_ancestral"]
    has_default = default_eta == (0.0 if sampler == "DDIM" else 1.0)
    eta = None if request.eta is None and has_default else request.eta if request.eta is not None else default_eta
    return {
        "sampler": sampler,
        "scheduler": None if sampler in OWN_SCHEDULE_SAMPLERS else scheduler,
        "eta": eta,
    }


def split_sampler(name: str) -> tuple[str, str | None]:
    """Return a sampler as we call it, and the scheduler that its name ends in.

    Raises:
        ApiError: The sampler does not exist; 404, as in A1111.
    """
    whole = find_sampler_name(name) if len(name) <= 200 else None
    if whole is None:
        raise a1111_not_found("Sampler not found")
    for _, scheduler in split_sampler_name(whole):
        if scheduler is not None and whole.endswith(f" {scheduler}"):
            return whole.removesuffix(f" {scheduler}"), scheduler
    return whole, None


def _hires_fields(request: Txt2ImgRequest, sampler: str, scheduler: str | None, warnings: list[str]) -> dict[str, Any]:
    """Return the fields of the second pass, none if it is off."""
    if not request.enable_hr:
        return {}
    if request.hr_checkpoint_name is not None and request.hr_checkpoint_name not in FIRST_PASS_NAMES:
        warnings.append("hr_checkpoint_name is not supported: the second pass is made on the same base")
    fields: dict[str, Any] = {
        "denoising": request.denoising_strength,
        "hires_steps": request.hr_second_pass_steps,
        "hires_upscaler": request.hr_upscaler or FIRST_PASS_UPSCALER,
        "hires_prompt": request.hr_prompt,
        "hires_negative": request.hr_negative_prompt,
        "hires_sampler": _hires_sampler(request, sampler, scheduler),
    }
    if (
        request.firstphase_width or request.firstphase_height
    ):  # of old clients: then the size is that of the second pass
        size = {
            "width": request.firstphase_width or request.width,
            "height": request.firstphase_height or request.height,
        }
        return {**fields, **size, "hires_size": (request.width, request.height)}
    if request.hr_resize_x or request.hr_resize_y:
        return {**fields, "hires_size": (request.hr_resize_x, request.hr_resize_y)}
    return {**fields, "hires_scale": request.hr_scale}


def _hires_sampler(request: Txt2ImgRequest, sampler: str, scheduler: str | None) -> str | None:
    """Return the sampler of the second pass with its scheduler, None for that of the first pass."""
    has_sampler = request.hr_sampler_name not in {None, *FIRST_PASS_NAMES}
    has_scheduler = request.hr_scheduler not in {None, *FIRST_PASS_NAMES}
    if not has_sampler and not has_scheduler:
        return None
    second, second_scheduler = split_sampler(str(request.hr_sampler_name)) if has_sampler else (sampler, None)
    if has_scheduler and second_scheduler is None:
        second_scheduler = find_scheduler_name(str(request.hr_scheduler))
    second_scheduler = second_scheduler or scheduler
    if second in OWN_SCHEDULE_SAMPLERS or second_scheduler in {None, "Automatic"}:
        return second
    return f"{second} {second_scheduler}"


def _img2img_fields(
    request: Img2ImgRequest, options: Mapping[str, JsonValue], warnings: list[str], *, has_mask: bool
) -> dict[str, Any]:
    fields: dict[str, Any] = {"denoising": request.denoising_strength, "fit": RESIZE_MODES[request.resize_mode]}
    if request.image_cfg_scale is not None:
        fields["image_guidance"] = request.image_cfg_scale
    if request.initial_noise_multiplier is not None:
        fields["noise_multiplier"] = request.initial_noise_multiplier
    weight = options["inpainting_mask_weight"]
    if weight != 1.0:
        fields["inpainting_mask_weight"] = weight
    if not has_mask:
        return fields
    blur = request.mask_blur
    if blur is None:
        blur = max(request.mask_blur_x, request.mask_blur_y)
        if request.mask_blur_x != request.mask_blur_y:
            warnings.append(f"mask_blur_x and mask_blur_y differ: the edge is blurred by {blur:g} both ways")
    padding = request.inpaint_full_res_padding if request.inpaint_full_res else None
    return fields | {
        "mask_blur": blur,
        "unrounded_mask": not request.mask_round,
        "masked_content": MASKED_CONTENTS[request.inpainting_fill],
        "mask_padding": padding,
    }


def _unsupported_fields(request: PictureRequest) -> Iterable[str]:
    """Yield warnings of fields that we do not have, where they would change the picture."""
    if request.refiner_checkpoint not in {None, *NO_OVERLAY}:
        yield "refiner_checkpoint has no effect: the whole picture is made on one base"
    if request.firstpass_image:
        yield "firstpass_image has no effect: the first pass is made from the prompt"
    if isinstance(request, Img2ImgRequest) and request.latent_mask is not None:
        yield "latent_mask has no effect: the mask is used"
