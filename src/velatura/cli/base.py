"""How a command line names the base."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer
from typer.models import OptionInfo

import velatura
from velatura.errors import UnknownName, UnsupportedBase

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.formats.checkpoint import Weights
    from velatura.sampling.recipe import Recipe


def base_option(panel: str, default: str | bool = True) -> OptionInfo:
    """The option --base, in a panel of the verb's help."""
    said = "tiny, a checkpoint, a diffusers folder, its name in --library, or hub:OWNER/NAME."
    return typer.Option("--base", help=said, rich_help_panel=panel, show_default=default)


class Opening(NamedTuple):
    """How a base is opened: precision and device, another autoencoder, whether only what computes is kept there, and
    which of a checkpoint's weights are taken.
    """

    dtype: str = "auto"
    device: str = "auto"
    vae: Path | None = None
    offload: bool = False
    weights: "Weights" = "last"


AS_FOUND = Opening()


def base_of(recipe: "Recipe", name: str | None, library: "velatura.Library", opening: Opening = AS_FOUND) -> "Base":
    """The base that is named, or else the one that a recipe was made on, found by its hash, or else by its name."""
    if name is not None:
        return open_base(name, library, opening)
    tiny = _tiny(opening)
    if recipe.base in {None, tiny.name} or (recipe.base_hash and tiny.hash == recipe.base_hash):
        return tiny
    with suppress(UnknownName):  # by name first: a hash makes the library read every checkpoint that it does not know
        named = library.hashed(library.entry(recipe.base or "", "checkpoint"))
        if recipe.base_hash is None or (named.hashes and named.hashes.has(recipe.base_hash)):
            return library.base(named.name, **opening._asdict())
    for called in filter(None, (recipe.base_hash, recipe.base)):
        with suppress(UnknownName):
            return library.base(called, **opening._asdict())
    raise UnknownName(
        f"the recipe was made on {recipe.base} ({recipe.base_hash or 'of no known hash'}), which is in no --library: "
        "give the folder where it lies, or another base by --base"
    )


def open_base(name: str, library: "velatura.Library | None" = None, opening: Opening = AS_FOUND) -> "Base":
    """The base that a command line names: tiny, a checkpoint or a folder by its path, or by its name in a library."""
    if name == "tiny":
        return _tiny(opening)
    is_path = bool(set(name) & set("/\\:")) or Path(name).exists()
    if library is None or is_path:
        return velatura.open_base(name, **opening._asdict())
    return library.base(name, **opening._asdict())


def _tiny(opening: Opening) -> "Base":
    """The tiny base: on the CPU unless another device is named, where the same seed makes the same picture anywhere."""
    if opening.vae or opening.offload or opening.weights != "last":
        raise UnsupportedBase(
            "the tiny base has its own autoencoder and fits anywhere: leave out --vae, --offload and --weights"
        )
    return velatura.tiny(opening.dtype, "cpu" if opening.device == "auto" else opening.device)
