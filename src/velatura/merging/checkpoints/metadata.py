"""The header of a merged file: A1111's merge recipe with true hashes, ModelSpec's fields, and the models' own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from velatura.errors import BadRecipe
from velatura.library.hashes import EMPTY_OLD_HASH, Hashes
from velatura.merging.checkpoints.weights import ModelWeights

RECIPE_KEY, MODELS_KEY = "sd_merge_recipe", "sd_merge_models"
# Fields that are true of the first model only. All others are copied from one model after the other.
FIRST_MODEL_PREFIXES = ("modelspec.", "velatura.")
STALE_KEYS = (RECIPE_KEY, MODELS_KEY, "modelspec.hash_sha256", "modelspec.date", "modelspec.thumbnail")
PARENT_HASH_KEYS = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")

MergeRecipe = Mapping[str, JsonValue]


def copy_metadata(models: Sequence[ModelWeights], name: str) -> dict[str, str]:
    """Return the fields of all models that are still true of their merge.

    Args:
        models: The models A, B, C; a field of a later one overrides the same field of an earlier one.
        name: The title of the merge, for ModelSpec's fields if a model has them.
    """
    fields: dict[str, str] = {}
    for index, model in enumerate(models):
        for key, value in model.metadata.items():
            if key not in STALE_KEYS and (index == 0 or not key.startswith(FIRST_MODEL_PREFIXES)):
                fields[key] = value
    if any(key.startswith("modelspec.") for key in fields):
        fields["modelspec.title"] = name
        fields["modelspec.merged_from"] = ", ".join(model.name for model in models)
    return fields


def essential_metadata(first: ModelWeights) -> dict[str, str]:
    """Return the fields of the first model that a reader needs and cannot derive from its tensors."""
    return {key: value for key, value in first.metadata.items() if key.startswith("velatura.")}


def recipe_metadata(models: Sequence[ModelWeights], options: MergeRecipe) -> dict[str, str]:
    """Return A1111's two fields: how the merge was made, and from which models, with their own ancestors.

    The hashes are those of the whole files, which are read for them. A base in memory has none.
    """
    hashes = [Hashes.from_file(model.path) if model.path and model.path.is_file() else None for model in models]
    recipe: dict[str, JsonValue] = {"type": "velatura"}
    for field, file_hashes in zip(PARENT_HASH_KEYS, [*hashes, None, None], strict=False):
        recipe[field] = file_hashes.sha256 if file_hashes else None
    recipe |= options
    ancestors: dict[str, object] = {}
    for model, file_hashes in zip(models, hashes, strict=True):
        if file_hashes and model.path:
            ancestors[file_hashes.sha256] = {
                "name": model.path.name,
                "legacy_hash": file_hashes.old or EMPTY_OLD_HASH,
                RECIPE_KEY: _parse_object(model.metadata.get(RECIPE_KEY)),
            }
        for key, ancestor in (_parse_object(model.metadata.get(MODELS_KEY)) or {}).items():
            ancestors.setdefault(key, ancestor)
    return {RECIPE_KEY: json.dumps(recipe), MODELS_KEY: json.dumps(ancestors)}


def parse_fields(text: str) -> dict[str, JsonValue]:
    """Read fields for the header from a JSON object with any values; raises BadRecipe for anything else."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecipe(
            f'{text[:40]!r} is not JSON ({str(error)[:80]}): write fields as in {{"author": "me"}}'
        ) from None
    if not isinstance(value, dict):
        raise BadRecipe(f'{text[:40]!r} is not a JSON object: write fields as in {{"author": "me"}}')
    return cast("dict[str, JsonValue]", value)


def as_strings(fields: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return fields as a header stores them: strings unchanged, other values as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


def _parse_object(text: str | None) -> dict[str, object] | None:
    """Read a JSON object from a foreign file's metadata; return None for anything else."""
    try:
        value: object = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", value) if isinstance(value, dict) else None
