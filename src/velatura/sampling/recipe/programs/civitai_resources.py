"""Civitai's list of resources in infotext: the checkpoint, and the overlays that its own generator used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from velatura.errors import warn
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.recipe.fields import OverlayResource, ResourceKind

CIVITAI_RESOURCES = "Civitai resources"  # the field
MAX_NAME_LENGTH = 200
OTHER_RESOURCES = {"checkpoint", "embed", "textualinversion", "upscaler", "vae"}  # which no tag calls
KIND_BY_TYPE: dict[str, ResourceKind] = {
    "hypernet": "hypernet",
    "hypernetwork": "hypernet",
}  # of Civitai's types; others are LoRAs
URN_PATTERN = re.compile(r"urn:air:[^:]*:(?P<type>[^:]*):civitai:\d+@(?P<version>\d+)")


def civitai_model(text: str) -> str | None:
    """Return the checkpoint's name in Civitai's list of resources, if it has one."""
    names = (resource.get("modelName") for resource in _parse_resources(text) if _type_of(resource) == "checkpoint")
    return next((name for name in names if isinstance(name, str) and name), None)


def read_resources(text: str, prompts: str) -> tuple[OverlayResource, ...]:
    """Return the overlays in Civitai's list of resources that the prompts do not call, as far as numbers tell.

    Pictures of its own generator have no tags. The list holds numbers of model versions, and no names of files.

    Args:
        text: The list, in JSON.
        prompts: Both prompts as one text. With as many tags as there are overlays, they call them.
    """
    resources = _parse_resources(text)
    if not resources and text.strip() not in {"", "[]"}:
        warn("Civitai resources cannot be read: if overlays were used without tags, the picture will be different")
    overlays = [resource for resource in resources if _type_of(resource) not in OTHER_RESOURCES]
    tags = sum(1 for _ in TAG_PATTERN.finditer(prompts))
    return () if len(overlays) <= tags else tuple(map(_read_resource, overlays))


def write_resources(resources: Sequence[OverlayResource]) -> str | None:
    """Return the list of overlays in JSON, as Civitai writes it, None for an empty one."""
    entries = [
        {
            "type": resource.kind,
            "weight": resource.weight,
            **({"modelVersionId": int(resource.version)} if resource.version else {}),
            **({"modelName": resource.name} if resource.name else {}),
            **({"hash": resource.hash} if resource.hash else {}),
        }
        for resource in resources
    ]
    return json.dumps(entries, ensure_ascii=False) if entries else None


def _parse_resources(text: str) -> Iterable[Mapping[str, object]]:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return []
    resources = cast("list[object]", parsed) if isinstance(parsed, list) else []
    return [cast("Mapping[str, object]", resource) for resource in resources if isinstance(resource, dict)]


def _type_of(resource: Mapping[str, object]) -> str:
    """Return the type of a resource; its URN has it too, as urn:air:sd1:lora:civitai:1@2."""
    urn = URN_PATTERN.match(str(resource.get("air", "")))
    return str(resource.get("type") or (urn["type"] if urn else "lora")).lower()


def _read_resource(resource: Mapping[str, object]) -> OverlayResource:
    urn = URN_PATTERN.match(str(resource.get("air", "")))
    version = str(resource.get("modelVersionId") or (urn["version"] if urn else ""))
    name, digest = resource.get("modelName") or resource.get("name"), resource.get("hash")
    return OverlayResource(
        kind=KIND_BY_TYPE.get(_type_of(resource), "lora"),
        name=str(name or resource.get("air") or "")[:MAX_NAME_LENGTH],
        version=version if re.fullmatch(r"[0-9]{1,12}", version) else "",
        weight=_read_weight(resource.get("weight")),
        hash=digest.lower() if isinstance(digest, str) and re.fullmatch(r"[0-9A-Fa-f]{8,64}", digest) else "",
    )


def _read_weight(weight: object) -> float:
    """Return a weight, 1 where it is missing or not a number."""
    if isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight):
        return float(weight)
    return 1.0
