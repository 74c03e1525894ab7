"""Call the overlays that a recipe lists without tags, where a library has their files."""

from __future__ import annotations

from pathlib import Path

from velatura.errors import UnknownName, warn
from velatura.library import Library
from velatura.library.entry import LibraryEntry
from velatura.prompts.tags import find_tags
from velatura.sampling.recipe.fields import OverlayHash, OverlayResource
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve.file_hashes import overlay_file_hashes


def call_resources(recipe: Recipe, library: Library | None) -> Recipe:
    """Return a recipe with tags for the overlays that it lists, and warn of those that the library does not have.

    Args:
        recipe: The recipe. Its `resources` are what remains: those that are not found.
        library: Finds them by hash, by Civitai's number of the version in the notes beside a file, or by name.
    """
    if not recipe.resources:
        return recipe
    entries = {resource: _find(resource, library) for resource in recipe.resources} if library else {}
    called = _called_files(recipe, library) if library else set[Path]()
    tags: list[str] = []
    hashes: list[OverlayHash] = []
    for resource, entry in entries.items():
        if entry is not None and entry.path not in called:
            called.add(entry.path)
            tags.append(f"<{resource.kind}:{entry.name}:{resource.weight:g}>")
            hashes += [
                OverlayHash.of(resource.kind, entry.name, digest)
                for digest in overlay_file_hashes(resource.kind, entry.path)[:1]
            ]
    missing = [resource for resource in recipe.resources if entries.get(resource) is None]
    if missing:
        warn(
            f"Civitai resources without a tag in the prompt are not used: {', '.join(map(_describe, missing))}; the "
            "picture will be different until you download them into the library and call them, as <lora:file:0.8>"
        )
    prompts = {"prompt": " ".join([recipe.prompt, *tags])}
    if recipe.hires_prompt:
        prompts["hires_prompt"] = " ".join([recipe.hires_prompt, *tags])
    return recipe.replace(
        **prompts,
        template=recipe.template,
        overlay_hashes=(*recipe.overlay_hashes, *hashes),
        resources=tuple(missing),
    )


def _find(resource: OverlayResource, library: Library) -> LibraryEntry | None:
    """Return the file of a resource, None if the library does not have it."""
    for key in resource.library_keys():
        try:
            found = library.entry(key, resource.kind)
        except UnknownName:
            continue
        if key == resource.name:
            warn(f"{_describe(resource)} is taken for {found.path}, which has its name")
        return found
    return None


def _called_files(recipe: Recipe, library: Library) -> set[Path]:
    """Return the files that the tags of the prompt call."""
    paths: set[Path] = set()
    for match in find_tags(recipe.prompt):
        try:
            paths.add(library.path(match["arguments"].partition(":")[0].strip(), match["kind"]))
        except UnknownName:
            continue
    return paths


def _describe(resource: OverlayResource) -> str:
    details = [f"model version {resource.version}"] if resource.version else []
    return f"{resource.name or 'an unnamed one'} ({', '.join([*details, f'weight {resource.weight:g}'])})"
