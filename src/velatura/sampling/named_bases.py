"""Open the base that a person names: tiny, a path, a model on the hub, or a name in a library."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from velatura.base.families import PREDICTION_WORDS
from velatura.errors import BadFile, UnknownName, UnsupportedBase, VelaturaError
from velatura.files import suggest_similar
from velatura.library.model_files import WEIGHTS_SUFFIXES
from velatura.tiny import TINY_HASH, tiny

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.base.families import PredictionWord
    from velatura.formats.checkpoints.single_file import WeightsKind
    from velatura.library import Library
    from velatura.sampling.recipe.recipe import Recipe

TINY_NAME = "tiny"


class LoadOptions(NamedTuple):
    """Options of opening a base: see `velatura.open_base`."""

    dtype: str = "auto"
    device: str = "auto"
    vae: Path | None = None
    offload: bool = False
    weights: WeightsKind = "last"
    prediction: PredictionWord | None = None
    zero_snr: bool | None = None
    unet: Path | None = None
    text: tuple[Path, ...] = ()

    @property
    def has_parts(self) -> bool:
        """Return True if a part of the base is replaced."""
        return self.unet is not None or bool(self.text) or self.vae is not None

    def complete(self, recipe: Recipe) -> Self:
        """Return the options with what a recipe records and was not given: prediction, schedule, kind of weights."""
        is_word = recipe.prediction in PREDICTION_WORDS.values()
        return self._replace(
            prediction=self.prediction or (cast("PredictionWord", recipe.prediction) if is_word else None),
            zero_snr=recipe.zero_snr if self.zero_snr is None else self.zero_snr,
            weights=(recipe.weights or "last") if self.weights == "last" else self.weights,
        )


DEFAULT_LOAD_OPTIONS = LoadOptions()


def open_recipe_base(
    recipe: Recipe, name: str | None, library: Library, load_options: LoadOptions = DEFAULT_LOAD_OPTIONS
) -> Base:
    """Open the named base, or else the base of the recipe.

    The recipe's base is found by hash or name, and opened as the recipe records it: with its prediction, schedule, kind
    of weights, text encoders and autoencoder, where others are not given. So is a named base that has the name or the
    hash of the recipe's; another base is opened as it is. A part that the library does not have is the base's own.
    Making the picture warns of all that differs from the recipe.
    """
    if name is None and load_options.unet is not None and recipe.base is None:
        name, load_options = str(load_options.unet), load_options._replace(unet=None)  # with --text and --vae a base
    if name is not None:
        if name != TINY_NAME and _is_recorded_base(str(load_options.unet or name), recipe):
            load_options = _add_recorded_parts(load_options.complete(recipe), recipe, library)
        return open_base(name, library, load_options)
    if recipe.base in {None, TINY_NAME} or recipe.base_hash == TINY_HASH:
        return _open_tiny(load_options)
    load_options = _add_recorded_parts(load_options.complete(recipe), recipe, library)
    with suppress(UnknownName):  # by name first: a hash makes the library read every checkpoint that it does not know
        entry = library.with_hashes(library.entry(recipe.base or "", "checkpoint"))
        if recipe.base_hash is None or (entry.hashes and entry.hashes.has(recipe.base_hash)):
            return library.base(entry.name, **load_options._asdict())
    for key in filter(None, (recipe.base_hash, recipe.base)):
        with suppress(UnknownName):
            return library.base(key, **load_options._asdict())
    raise UnknownName(
        f"the recipe was made on {recipe.base} ({recipe.base_hash or 'no hash'}), which is not in any --library: "
        "give its folder with --library, or another base with --base"
    )


def _is_recorded_base(name: str, recipe: Recipe) -> bool:
    """Return True if a name, path or hash is that of the base, or else of the UNet, that a recipe records."""
    path = Path(name)
    words = {path.name.lower(), path.stem.lower()}
    return any(recorded is not None and recorded.lower() in words for recorded in (recipe.base, recipe.base_hash))


def _add_recorded_parts(load_options: LoadOptions, recipe: Recipe, library: Library) -> LoadOptions:
    """Return the options with the text encoders and the autoencoder that a recipe records and that were not given."""
    text, vae = load_options.text, load_options.vae
    if not text and recipe.text_hash:
        hashes, names = recipe.text_hash.split(", "), (recipe.text or "").split(", ")
        named = zip(names, hashes, strict=True) if len(names) == len(hashes) else ((None, digits) for digits in hashes)
        found = [library.recorded_part(name, digits, "text") for name, digits in named]
        text = tuple(path for path in found if path is not None) if all(found) else ()
    if vae is None and (recipe.vae or recipe.vae_hash):
        vae = library.recorded_part(recipe.vae, recipe.vae_hash, "vae")
    return load_options._replace(text=text, vae=vae)


def open_base(name: str, library: Library | None = None, load_options: LoadOptions = DEFAULT_LOAD_OPTIONS) -> Base:
    """Open tiny, a checkpoint or folder by its path, or a base by its name in a library."""
    if name == TINY_NAME:
        return _open_tiny(load_options)
    if library is None or is_path(name):
        from velatura.formats.open import open_base as open_path

        return open_path(name, **_find_parts(load_options, library)._asdict())
    try:
        return library.base(name, **load_options._asdict())
    except UnknownName as error:
        raise explain_missing(name, error) from None


def refuse_unknown_base(name: str, library: Library) -> None:
    """Refuse the name of a base that does not exist, before torch is imported.

    Raises:
        UnknownName: It is not tiny, not on the hub, not a path that exists, and no base in the library has it.
        BadFile: The same of a name that looks like a path.
    """
    if name == TINY_NAME or is_path(name):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same warnings come when the base is opened
        try:
            library.entry(name, "checkpoint", label="base")
        except UnknownName as error:
            raise explain_missing(name, error) from None


def _find_parts(load_options: LoadOptions, library: Library | None) -> LoadOptions:
    """Return the options with the paths of parts that are given by their names in a library."""
    if library is None or not load_options.has_parts:
        return load_options
    unet, vae = load_options.unet, load_options.vae
    return load_options._replace(
        unet=None if unet is None else library.part_path(unet, "unet"),
        text=tuple(library.part_path(text, "text") for text in load_options.text),
        vae=None if vae is None else library.part_path(vae, "vae"),
    )


def is_path(name: str) -> bool:
    """Return True if an argument is the path of something that exists, or a model on the hub, not a library's name."""
    return name.startswith("hub:") or Path(name).expanduser().exists()


def explain_missing(name: str, error: UnknownName) -> VelaturaError:
    """Return the error for an argument that is not in the library: one that looks like a path may be one."""
    looks_like_path = bool(set(name) & set("/\\")) or Path(name).suffix.lower() in WEIGHTS_SUFFIXES
    if not looks_like_path:
        return error
    similar = suggest_similar(name)
    return BadFile(f"{name} does not exist{similar}" if similar else f"{name} does not exist, and {error}")


def _open_tiny(load_options: LoadOptions) -> Base:
    """Open the tiny base, on the CPU unless a device is named: a seed makes the same picture everywhere."""
    if load_options.prediction or load_options.zero_snr is not None:
        raise UnsupportedBase("the tiny base predicts noise (epsilon): leave out --prediction and --zero-snr")
    if load_options.unet or load_options.text:
        raise UnsupportedBase(
            "the tiny base is whole: leave out --unet and --text, or name the base whose parts they replace with --base"
        )
    if load_options.vae or load_options.offload or load_options.weights != "last":
        raise UnsupportedBase(
            "the tiny base has its own autoencoder and fits anywhere: leave out --vae, --offload and --weights"
        )
    return tiny(load_options.dtype, "cpu" if load_options.device == "auto" else load_options.device)
