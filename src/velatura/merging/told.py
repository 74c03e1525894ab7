"""What a merged file tells of how it came about: A1111's fields with true hashes, and ModelSpec's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from velatura.errors import BadRecipe
from velatura.library.hashes import NOTHING, Hashes
from velatura.merging.weights import Weights

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
# these are true of the first model alone; what is said of all others is copied from one after the other
FIRST = ("modelspec.", "velatura.")
STALE = (RECIPE, MODELS, "modelspec.hash_sha256", "modelspec.date", "modelspec.thumbnail")
FIELDS = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")

Recipe = Mapping[str, JsonValue]


def copied(models: Sequence[Weights], name: str) -> dict[str, str]:
    """The fields of all models, as the merge may have them."""
    found: dict[str, str] = {}
    for place, model in enumerate(models):
        kept = {key: each for key, each in model.metadata.items() if key not in STALE}
        found |= {key: each for key, each in kept.items() if place == 0 or not key.startswith(FIRST)}
    if any(key.startswith("modelspec.") for key in found):
        found["modelspec.title"] = name
        found["modelspec.merged_from"] = ", ".join(each.name for each in models)
    return found


def needed(first: Weights) -> dict[str, str]:
    """What a reader needs to know of the first model and cannot tell from its tensors."""
    return {key: each for key, each in first.metadata.items() if key.startswith("velatura.")}


def recipe(models: Sequence[Weights], how: Recipe) -> dict[str, str]:
    """A1111's two fields: how this was made, and of which models, their own ancestors among them.

    The hashes are those of the whole files, which are read for it; a base without a file has none.
    """
    hashes = [Hashes.of(each.path) if each.path and each.path.is_file() else None for each in models]
    listed = zip(FIELDS, [*hashes, None, None], strict=False)
    made = {"type": "velatura", **{field: each.sha256 if each else None for field, each in listed}, **how}
    known: dict[str, object] = {}
    for model, each in zip(models, hashes, strict=True):
        if each and model.path:
            old = {"name": model.path.name, "legacy_hash": each.old or NOTHING}
            known[each.sha256] = {**old, RECIPE: _object(model.metadata.get(RECIPE))}
        known |= {
            key: ancestor for key, ancestor in (_object(model.metadata.get(MODELS)) or {}).items() if key not in known
        }
    return {RECIPE: json.dumps(made), MODELS: json.dumps(known)}


def own_fields(text: str) -> dict[str, JsonValue]:
    """Read the fields that a person gives, a JSON object of whatever values."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecipe(
            f'{text[:40]!r} is no JSON ({str(error)[:80]}): write fields as in {{"author": "me"}}'
        ) from None
    if not isinstance(found, dict):
        raise BadRecipe(f'{text[:40]!r} is no JSON object: write fields as in {{"author": "me"}}')
    return cast("dict[str, JsonValue]", found)


def as_texts(fields: Mapping[str, JsonValue]) -> dict[str, str]:
    """Fields as a header holds them: texts as they are, other values as JSON."""
    return {key: each if isinstance(each, str) else json.dumps(each) for key, each in fields.items()}


def _object(text: str | None) -> dict[str, object] | None:
    """A JSON object in a strange file's metadata, or None for anything else."""
    try:
        found: object = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", found) if isinstance(found, dict) else None
