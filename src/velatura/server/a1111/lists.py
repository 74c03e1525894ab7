"""Routes that list what there is: samplers, schedulers, upscalers, styles, flags, memory."""

from __future__ import annotations

from fastapi import APIRouter

from velatura.errors import BadFile
from velatura.prompts.styles import Style, read_styles
from velatura.sampling.recipe.sampler_names import (
    SAMPLER_ALIASES,
    SAMPLER_NAMES,
    SCHEDULER_ALIASES,
    SCHEDULER_NAMES,
    name_key,
)
from velatura.server.a1111.errors import PlainJson
from velatura.server.a1111.models import shown_path
from velatura.server.state import ReadyState, ServerState, State

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

DEFAULT_RHO = {"Karras": 7.0, "Polyexponential": 1.0}
NEEDS_MODEL_LEVELS = {"Uniform", "SGM Uniform", "Simple", "Normal", "DDIM", "Beta"}
STYLE_FILE = "styles.csv"
MAX_STYLE_BYTES = 2**22
UPSCALER_SCALE = 4  # which A1111 gives for those that take any


@router.get("/samplers")
def list_samplers() -> list[dict[str, object]]:
    """List the samplers with other names that they are known by, and A1111's notes about them."""
    from velatura.sampling.samplers.table import SAMPLERS

    def options(name: str) -> dict[str, str]:
        sampler = SAMPLERS[name]
        notes = {
            "uses_ensd": sampler.uses_ensd,
            "second_order": sampler.calls_per_step == 2,
            "discard_next_to_last_sigma": sampler.discards_penultimate,
            "brownian_noise": name.endswith((" SDE", "SDE Heun")),
        }
        found = {note: "True" for note, holds in notes.items() if holds}
        if sampler.automatic_scheduler != "Uniform":
            found["scheduler"] = name_key(sampler.automatic_scheduler)
        return found

    return [{"name": name, "aliases": _aliases(name), "options": options(name)} for name in SAMPLER_NAMES]


def _aliases(name: str) -> list[str]:
    keys = [name_key(name), *(alias for alias, target in SAMPLER_ALIASES.items() if target == name)]
    return [f"k_{key}" for key in dict.fromkeys(keys) if not key.endswith("scheduler")]


@router.get("/schedulers")
def list_schedulers() -> list[dict[str, object]]:
    """List the noise schedules."""
    return [
        {
            "name": name_key(label),
            "label": label,
            "aliases": [alias for alias, target in SCHEDULER_ALIASES.items() if target == label],
            "default_rho": DEFAULT_RHO.get(label, -1.0),
            "need_inner_model": label in NEEDS_MODEL_LEVELS,
        }
        for label in SCHEDULER_NAMES
    ]


@router.get("/upscalers")
def list_upscalers(state: ReadyState) -> list[dict[str, object]]:
    """List the upscalers of pixels: those without a file, and the networks of the library."""
    from velatura.sampling.hires import PIXEL_UPSCALERS

    nothing = {"model_name": None, "model_path": None, "model_url": None}
    built_in: list[dict[str, object]] = [{"name": name, **nothing, "scale": UPSCALER_SCALE} for name in PIXEL_UPSCALERS]
    networks: list[dict[str, object]] = [
        {
            "name": entry.name,
            "model_name": entry.name,
            "model_path": shown_path(state, entry.path),
            "model_url": None,
            "scale": UPSCALER_SCALE,
        }
        for entry in state.library.of_kind("upscaler")
        if not entry.error
    ]
    return built_in + networks


@router.get("/latent-upscale-modes")
def list_latent_upscale_modes() -> list[dict[str, str]]:
    """List the ways to upscale latents."""
    from velatura.sampling.hires import LATENT_UPSCALERS

    return [{"name": name} for name in LATENT_UPSCALERS]


@router.get("/face-restorers")
def list_face_restorers(state: ReadyState) -> list[dict[str, str | None]]:
    """List the face restorers whose files are in the library, by A1111's names; of several files their own too."""
    from velatura.sampling.resolve.faces import restorer_names

    entries = [entry for entry in state.library.of_kind("face-restorer") if not entry.error]
    return [{"name": name, "cmd_dir": None} for name in restorer_names(entries)]


@router.get("/realesrgan-models")
def list_realesrgan_models(state: ReadyState) -> list[dict[str, object]]:
    """List those of Real-ESRGAN's own networks whose files are in the library, by A1111's names."""
    from velatura.sampling.hires import REAL_ESRGAN_FILES

    entries = {entry.name.lower(): entry for entry in state.library.of_kind("upscaler") if not entry.error}
    return [
        {"name": name, "path": shown_path(state, entries[file.lower()].path), "scale": UPSCALER_SCALE}
        for name, file in REAL_ESRGAN_FILES.items()
        if file.lower() in entries
    ]


@router.get("/extensions")
def list_extensions() -> list[dict[str, str]]:
    """List the extensions: there are none."""
    return []


@router.get("/cmd-flags")
def get_flags(state: State) -> dict[str, object]:
    """Return the command-line flags that both programs have; those that are folders or secrets are left out."""
    settings = state.settings
    return {
        "api": True,
        "nowebui": settings.api_only,
        "listen": settings.listen,
        "server_name": settings.host,
        "port": settings.port,
        "api_server_stop": False,
        "api_log": False,
        "disable_extra_extensions": True,
        "lowvram": False,
        "medvram": settings.offload,
        "no_half": settings.dtype == "float32",
        "cors_allow_origins": ",".join(settings.origins) or None,
    }


@router.get("/memory")
def get_memory(state: State) -> PlainJson:
    """Return the memory of the machine and of the device, in bytes."""
    import psutil

    memory = psutil.virtual_memory()
    used = psutil.Process().memory_info().rss
    ram = {"free": memory.available, "used": used, "total": memory.total}
    device = state.models.device
    if device is None or not device.startswith("cuda"):
        return PlainJson({"ram": ram, "cuda": {"error": "unavailable"}})
    import torch

    free, total = torch.cuda.mem_get_info(device)
    stats = torch.cuda.memory_stats(device)
    pools = {"allocated": "allocated_bytes", "reserved": "reserved_bytes", "active": "active_bytes"}
    pools["inactive"] = "inactive_split_bytes"
    cuda: dict[str, object] = {"system": {"free": free, "used": total - free, "total": total}}
    for name, key in pools.items():
        cuda[name] = {"current": stats[f"{key}.all.current"], "peak": stats[f"{key}.all.peak"]}
    cuda["events"] = {"retries": stats["num_alloc_retries"], "oom": stats["num_ooms"]}
    return PlainJson({"ram": ram, "cuda": cuda})


@router.get("/prompt-styles")
def list_styles(state: State) -> list[dict[str, str]]:
    """List the styles."""
    return [
        {"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative}
        for style in read_library_styles(state).values()
    ]


def read_library_styles(state: ServerState) -> dict[str, Style]:
    """Return the styles of all folders by name, those of the folder given first before others.

    Raises:
        BadFile: A table is damaged.
    """
    styles: dict[str, Style] = {}
    for folder in (*state.folders.library, state.folders.out):
        path = folder / STYLE_FILE
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                text = file.read(MAX_STYLE_BYTES).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise BadFile(f"{path} cannot be read as a text in UTF-8: save it again") from None
        styles = read_styles(text) | styles
    return styles
