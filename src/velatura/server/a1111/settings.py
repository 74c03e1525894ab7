"""A1111's settings that act here: names, defaults and the fields of recipes that they set; their routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Body, Response
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from velatura.errors import UnknownName
from velatura.sampling.recipe.recipe import Recipe
from velatura.server.a1111.answers import check_finished
from velatura.server.a1111.errors import PlainJson
from velatura.server.errors import ApiError
from velatura.server.jobs.base_requests import BaseRequest
from velatura.server.library_view import LibraryView
from velatura.server.models import TINY
from velatura.server.state import ReadyState, ServerState, State
from velatura.tiny import TINY_HASH

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

MAX_WARNING_LENGTH = 500
CHECKPOINT, VAE, HYPERNETWORK, LORA = "sd_model_checkpoint", "sd_vae", "sd_hypernetwork", "sd_lora"
FACES, FACE_RESTORER = "face_restoration", "face_restoration_model"
OWN_FACE_RESTORER = "CodeFormer"  # A1111's default: here, whatever the library has
FACE_RESTORERS = {"none": "None", "codeformer": "CodeFormer", "gfpgan": "GFPGAN"}
OPTION_PREFIX = "a1111/"
OWN_VAE = {"Automatic", "None", ""}
NO_OVERLAY = {"None", ""}
SAMPLES_FORMATS = ("png", "jpg", "webp")


class RecipeOption(NamedTuple):
    """A setting that is a field of recipes, with A1111's default."""

    default: JsonValue
    field: str


# Of requests that do not have such a field themselves
RECIPE_OPTIONS: Mapping[str, RecipeOption] = {
    "CLIP_stop_at_last_layers": RecipeOption(1, "clip_skip"),
    "eta_noise_seed_delta": RecipeOption(0, "ensd"),
    "s_min_uncond": RecipeOption(0.0, "skip_negative_below"),
    "s_churn": RecipeOption(0.0, "churn"),
    "s_tmin": RecipeOption(0.0, "churn_from"),
    "s_tmax": RecipeOption(0.0, "churn_to"),
    "s_noise": RecipeOption(1.0, "churn_noise"),
    "sigma_min": RecipeOption(0.0, "sigma_min"),
    "sigma_max": RecipeOption(0.0, "sigma_max"),
    "rho": RecipeOption(0.0, "rho"),
    "always_discard_next_to_last_sigma": RecipeOption(False, "discards_penultimate"),
    "sgm_noise_multiplier": RecipeOption(False, "sgm_noise"),
    "uni_pc_variant": RecipeOption("bh1", "unipc_variant"),
    "uni_pc_skip_type": RecipeOption("time_uniform", "unipc_spacing"),
    "uni_pc_order": RecipeOption(3, "unipc_order"),
    "uni_pc_lower_order_final": RecipeOption(True, "unipc_lower_order_final"),
    "enable_quantization": RecipeOption(False, "quantised"),
    "randn_source": RecipeOption("GPU", "noise"),
    "emphasis": RecipeOption("Original", "emphasis"),
    "use_old_scheduling": RecipeOption(False, "old_editing"),
    "initial_noise_multiplier": RecipeOption(1.0, "noise_multiplier"),
    "img2img_extra_noise": RecipeOption(0.0, "extra_noise"),
    "tiling": RecipeOption(False, "tiling"),
}
OTHER_OPTIONS: Mapping[str, JsonValue] = {
    VAE: "Automatic",
    HYPERNETWORK: "None",
    "sd_hypernetwork_strength": 1.0,
    LORA: "None",
    "k_sched_type": "Automatic",
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "inpainting_mask_weight": 1.0,
    FACES: False,
    FACE_RESTORER: OWN_FACE_RESTORER,
    "code_former_weight": 0.5,
    "samples_format": "png",
    "return_grid": True,
    "live_previews_enable": True,
    "interrogate_deepbooru_score_threshold": 0.5,
}
OPTION_DEFAULTS: Mapping[str, JsonValue] = {
    **{name: option.default for name, option in RECIPE_OPTIONS.items()},
    **OTHER_OPTIONS,
}


@router.get("/options")
def get_options(state: State) -> PlainJson:
    """Return all settings."""
    options = known_options(state)
    title = str(options[CHECKPOINT])
    short_hash = title.rpartition("[")[2].rstrip("]") if title.endswith("]") else None
    return PlainJson({**options, "sd_checkpoint_hash": short_hash})


@router.post("/options")
def set_options(state: ReadyState, response: Response, changes: Annotated[dict[str, JsonValue], Body()]) -> None:
    """Change settings; those that do not exist here are named in the header Warning."""
    checked, unknown = checked_options(state, changes)
    store_options(state, checked)
    if unknown:
        names = ", ".join(unknown).encode("ascii", "replace").decode()
        shown = "".join(character for character in names if character.isprintable() and character not in '"\\')
        response.headers["Warning"] = f'299 velatura "settings that do not exist here: {shown[:MAX_WARNING_LENGTH]}"'


@router.post("/unload-checkpoint")
async def unload_base(state: State) -> dict[str, str]:
    """Close the base, which frees its memory until the next job needs it."""
    return await _open_or_close(state, BaseRequest(is_open=False))


@router.post("/reload-checkpoint")
async def reload_base(state: ReadyState) -> dict[str, str]:
    """Open the base that the settings choose."""
    name = await run_in_threadpool(lambda: base_of_options(state, known_options(state)))
    return await _open_or_close(state, BaseRequest(base=name))


async def _open_or_close(state: ServerState, request: BaseRequest) -> dict[str, str]:
    job = await run_in_threadpool(state.submit, request)
    job = await state.jobs.wait(job.id)
    check_finished(job)
    return {}


def known_options(state: ServerState) -> dict[str, JsonValue]:
    """Return all settings with their values: those that clients set, and the defaults of the others."""
    stored = state.options.all()
    values: dict[str, JsonValue] = {CHECKPOINT: checkpoint_title(state, state.settings.base)}
    values |= OPTION_DEFAULTS
    return {name: stored.get(_key(state, name), value) for name, value in values.items()}


def checked_options(state: ServerState, changes: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], list[str]]:
    """Return the changes of settings that exist, and the names of those that do not.

    Raises:
        ApiError: A value is of the wrong type.
        VelaturaError: A value is out of range, or names a file that is not there.
    """
    checked: dict[str, JsonValue] = {}
    for name, value in changes.items():
        if name == CHECKPOINT:
            if value is not None and value != "":
                checked[name] = checkpoint_title(state, _text(name, value))
        elif name in OPTION_DEFAULTS:
            checked[name] = _check_option(state, name, value)
    return checked, sorted(name for name in changes if name != CHECKPOINT and name not in OPTION_DEFAULTS)


def store_options(state: ServerState, changes: Mapping[str, JsonValue]) -> None:
    """Keep checked settings; they survive a restart."""
    state.options.set({_key(state, name): value for name, value in changes.items()})


def base_of_options(state: ServerState, options: Mapping[str, JsonValue]) -> str | None:
    """Return the name of the base that the settings choose, None for the server's own."""
    title = str(options[CHECKPOINT])
    return None if title == checkpoint_title(state, state.settings.base) else title


def checkpoint_title(state: ServerState, name: str) -> str:
    """Return a base's title in A1111, its name with its short hash if that is known.

    Raises:
        UnknownName: No base has this name.
    """
    own, tiny_title = state.settings.base, f"{TINY} [{TINY_HASH}]"
    if name in {TINY, tiny_title, TINY_HASH} or (name == own and own == TINY):
        return tiny_title
    try:
        entry = state.library.named(name, "checkpoint")
    except UnknownName:
        if name in {own, own_stem(own)}:  # a path that whoever started the server named
            return own_stem(own)
        raise
    return f"{entry.name} [{entry.hashes.sha256[:10]}]" if entry.hashes else entry.name


def own_stem(base: str) -> str:
    """Return the name of the server's base without its folder and ending."""
    name = base.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name.rpartition(".")[0] if name.endswith((".safetensors", ".ckpt", ".pt")) else name


def _key(state: ServerState, name: str) -> str:
    """Return the name under which a setting is stored; a base that was chosen counts while the server's is the same."""
    return f"{OPTION_PREFIX}{name}@{state.settings.base}" if name == CHECKPOINT else f"{OPTION_PREFIX}{name}"


def _check_option(state: ServerState, name: str, value: JsonValue) -> JsonValue:
    """Return the value of a setting in the type of its default."""
    default = OPTION_DEFAULTS[name]
    if name in RECIPE_OPTIONS:
        field = RECIPE_OPTIONS[name].field
        return Recipe.model_validate({field: default if value is None else value}).model_dump(mode="json")[field]
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise _wrong_type(name, "true or false")
        return value
    if name == "code_former_weight":
        value = 0.5 if value is None else value
        return Recipe.model_validate({"codeformer_weight": value}).codeformer_weight
    if isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise _wrong_type(name, "a number")
        return float(value)
    text = _text(name, value)
    if name == "samples_format" and text not in SAMPLES_FORMATS:
        raise _wrong_type(name, "one of png, jpg and webp")
    if name == FACE_RESTORER:
        known = FACE_RESTORERS.get(text.lower())
        return known or state.library.named(text, "face-restorer").name
    if name in {VAE, HYPERNETWORK, LORA}:
        _check_file(state.library, name, text)
    return text


def _check_file(library: LibraryView, option: str, name: str) -> None:
    """Refuse a setting that names a file which is not in the library.

    Raises:
        UnknownName: It is not.
    """
    kinds = {VAE: ("vae", OWN_VAE), HYPERNETWORK: ("hypernet", NO_OVERLAY), LORA: ("lora", NO_OVERLAY)}
    kind, none = kinds[option]
    if name not in none:
        library.named(name, kind)


def _text(name: str, value: JsonValue) -> str:
    if value is None:
        return "None"
    if not isinstance(value, str) or len(value) > 1000:
        raise _wrong_type(name, "a text")
    return value


def _wrong_type(name: str, expected: str) -> ApiError:
    return ApiError(422, "bad_option", f"the setting {name} should be {expected}", name)
