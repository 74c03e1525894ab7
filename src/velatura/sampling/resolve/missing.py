"""Find what a recipe needs and a library lacks: its base, its VAE, overlays and embeddings, its sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from velatura.errors import UnknownName, ignore_warnings
from velatura.overlays.embedding import Embedding
from velatura.prompts.tags import split_tags, strip_comments
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sampler_names import find_sampler_name, find_scheduler_name
from velatura.sampling.resolve.overlays import KIND_ALIASES

# Looks up a file by its name and its kind ("lora", "checkpoint"), and raises UnknownName if there is none
FindFile = Callable[[str, str], object]


class MissingPart(NamedTuple):
    """A part of a recipe that is not here.

    Attributes:
        kind: "base", "vae", "sampler", "scheduler", or a kind of overlay, such as "lora".
        name: Its name in the recipe.
        hash: The short hash that the recipe records for its file, "" if none.
    """

    kind: str
    name: str
    hash: str = ""


def find_missing(recipe: Recipe, find_file: FindFile, own_bases: frozenset[str] = frozenset()) -> list[MissingPart]:
    """Return what is needed to make a picture again and is not here.

    A file whose name is unknown counts as here if the hash that the recipe records is known.

    Args:
        recipe: The recipe of the picture.
        find_file: Looks up files, as `Library.entry` does.
        own_bases: Names of bases that are here although the library does not list them, such as "tiny".
    """
    with ignore_warnings():
        return list(dict.fromkeys(_missing_parts(recipe, find_file, own_bases)))


def _missing_parts(recipe: Recipe, find_file: FindFile, own_bases: frozenset[str]) -> Iterator[MissingPart]:
    base = MissingPart("base", recipe.base or "", recipe.base_hash or "")
    if base.name not in own_bases and not _is_here(base, find_file, "checkpoint"):
        yield base
    yield from _missing_resources(recipe, find_file)
    for part in (MissingPart("vae", recipe.vae or "", recipe.vae_hash or ""), *_overlays(recipe)):
        if not _is_here(part, find_file, part.kind):
            yield part
    samplers = filter(None, (recipe.sampler, recipe.hires_sampler))
    yield from (MissingPart("sampler", name) for name in samplers if find_sampler_name(name) is None)
    if recipe.scheduler and find_scheduler_name(recipe.scheduler) is None:
        yield MissingPart("scheduler", recipe.scheduler)


def _missing_resources(recipe: Recipe, find_file: FindFile) -> Iterator[MissingPart]:
    """Yield the overlays that the recipe lists without a tag and that are not here."""
    for resource in recipe.resources:
        keys = resource.library_keys()
        if not any(_is_here(MissingPart(resource.kind, key), find_file, resource.kind) for key in keys):
            yield MissingPart(resource.kind, resource.name or next(iter(keys), "an unnamed one"), resource.hash)


def _is_here(part: MissingPart, find_file: FindFile, kind: str) -> bool:
    """Return True if a file has the part's name or hash, or if the recipe names none."""
    for name in filter(None, (part.name, part.hash)):
        try:
            find_file(name, kind)
        except UnknownName:
            continue
        return True
    return not part.name


def _overlays(recipe: Recipe) -> Iterator[MissingPart]:
    """Yield the overlays that tags call, and the embeddings that the recipe records."""
    hashes = {(entry.kind, entry.name.lower()): entry.hash for entry in recipe.overlay_hashes}
    for text in (recipe.prompt, recipe.negative, recipe.hires_prompt, recipe.hires_negative):
        for tag in split_tags(strip_comments(text), lenient=True)[1]:
            kind = KIND_ALIASES.get(tag.kind, tag.kind)
            yield MissingPart(kind, tag.name, hashes.get((kind, tag.name.lower()), ""))
    for entry in recipe.overlay_hashes:
        if entry.kind == Embedding.kind:
            yield MissingPart(entry.kind, entry.name, entry.hash)
