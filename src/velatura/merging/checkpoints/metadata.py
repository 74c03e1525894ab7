"""What a merged file tells of how it came about: A1111's fields with true hashes, and ModelSpec's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from velatura.errors import BadRecipe
from velatura.library.hashes import EMPTY_OLD_HASH, Hashes
from velatura.merging.checkpoints.weights import ModelWeights

RECIPE_KEY, MODELS_KEY = "sd_merge_recipe", "sd_merge_models"
# these are true of the first model alone; what is said of all others is copied from one after the other
FIRST_MODEL_PREFIXES = ("modelspec.", "velatura.")
STALE_KEYS = (RECIPE_KEY, MODELS_KEY, "modelspec.hash_sha256", "modelspec.date", "modelspec.thumbnail")
PARENT_HASH_KEYS = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")

MergeRecipe = Mapping[str, JsonValue]


def copy_metadata(models: Sequence[ModelWeights], name: str) -> dict[str, str]:
    """The fields of all models, as the merge may have them."""
    fields: dict[str, str] = {}
    for index, model in enumerate(models):
        kept = {key: value for key, value in model.metadata.items() if key not in STALE_KEYS}
        fields |= {key: value for key, value in kept.items() if index == 0 or not key.startswith(FIRST_MODEL_PREFIXES)}
    if any(key.startswith("modelspec.") for key in fields):
        fields["modelspec.title"] = name
        fields["modelspec.merged_from"] = ", ".join(model.name for model in models)
    return fields


def essential_metadata(first: ModelWeights) -> dict[str, str]:
    """What a reader needs to know of the first model and cannot tell from its tensors."""
    return {key: value for key, value in first.metadata.items() if key.startswith("velatura.")}


def recipe_metadata(models: Sequence[ModelWeights], options: MergeRecipe) -> dict[str, str]:
    """A1111's two fields: how this was made, and of which models, their own ancestors among them.

    The hashes are those of the whole files, which are read for it; a base without a file has none.
    """
    hashes = [Hashes.from_file(model.path) if model.path and model.path.is_file() else None for model in models]
    hash_fields = zip(PARENT_HASH_KEYS, [*hashes, None, None], strict=False)
    recipe = {
        "type": "velatura",
        **{field: file_hashes.sha256 if file_hashes else None for field, file_hashes in hash_fields},
        **options,
    }
    ancestors: dict[str, object] = {}
    for model, file_hashes in zip(models, hashes, strict=True):
        if file_hashes and model.path:
            entry = {"name": model.path.name, "legacy_hash": file_hashes.old or EMPTY_OLD_HASH}
            ancestors[file_hashes.sha256] = {**entry, RECIPE_KEY: _parse_object(model.metadata.get(RECIPE_KEY))}
        ancestors |= {
            key: ancestor
            for key, ancestor in (_parse_object(model.metadata.get(MODELS_KEY)) or {}).items()
            if key not in ancestors
        }
    return {RECIPE_KEY: json.dumps(recipe), MODELS_KEY: json.dumps(ancestors)}


def parse_fields(text: str) -> dict[str, JsonValue]:
    """Read the fields that a person gives, a JSON object of whatever values."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecipe(
            f'{text[:40]!r} is no JSON ({str(error)[:80]}): write fields as in {{"author": "me"}}'
        ) from None
    if not isinstance(value, dict):
        raise BadRecipe(f'{text[:40]!r} is no JSON object: write fields as in {{"author": "me"}}')
    return cast("dict[str, JsonValue]", value)


def as_strings(fields: Mapping[str, JsonValue]) -> dict[str, str]:
    """Fields as a header holds them: texts as they are, other values as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


def _parse_object(text: str | None) -> dict[str, object] | None:
    """A JSON object in a strange file's metadata, or None for anything else."""
    try:
        value: object = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", value) if isinstance(value, dict) else None
