"""Bases and overlays of the worker: one base is open at a time, and its encoded texts are kept between jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velatura.errors import UnknownName
from velatura.sampling.named_bases import LoadOptions, open_base
from velatura.server.folders import Folders
from velatura.server.library_view import ServerLibrary
from velatura.server.settings import ServerSettings

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from velatura.base.base import Base
    from velatura.base.families import Family
    from velatura.sampling.generate import BatchRunner
    from velatura.sampling.recipe.recipe import Recipe
    from velatura.sampling.resolve.token_count import TokenCounter

TINY = "tiny"
DEFAULT_BATCH_PICTURES = 8


class Models:
    """Open base and library, for the one thread that computes.

    Attributes:
        library: Finds overlays and bases by name.
        base_name: The name of the base that requests get which name none.
        own_hashes: Hashes of that base, its text encoders and its autoencoder, once they are recorded.
    """

    def __init__(self, settings: ServerSettings, folders: Folders) -> None:
        self._settings = settings
        self.library = ServerLibrary(*folders.library)
        self.base_name = settings.base
        self.own_hashes: tuple[str | None, ...] = (None, None, None)
        self._open: tuple[str, Base] | None = None
        self._vae: str | None = None  # of the open base, if it is not the base's own
        self._runner: BatchRunner | None = None
        self._counter: tuple[CLIPTokenizer, TokenCounter] | None = None  # without the base, which may be closed

    @property
    def open_base_name(self) -> str | None:
        """Name of the base that is open."""
        opened = self._open
        return opened and opened[1].name

    @property
    def device(self) -> str | None:
        """Device of the base that is open."""
        opened = self._open  # once: another thread asks
        return opened and str(opened[1].device)

    @property
    def family(self) -> Family | None:
        """Family of the base that is open."""
        opened = self._open
        return opened and opened[1].family

    def token_counter(self) -> TokenCounter | None:
        """Return what counts tokens for the base that is open, or was last open; any thread may call it."""
        from velatura.sampling.resolve.token_count import TokenCounter

        opened, counter = self._open, self._counter
        if opened is not None:
            tokenizer = opened[1].text.tokenizer
            if counter is None or counter[0] is not tokenizer:
                self._counter = counter = (tokenizer, TokenCounter(tokenizer))
        return counter and counter[1]

    def base(self, name: str | None = None, vae: str | None = None) -> Base:
        """Return a base; the one that was open is closed first.

        Args:
            name: tiny, a name in the library, or the name of the server's own base. None: the server's own base.
            vae: The name of a VAE in the library. None: the base's own.

        Raises:
            UnknownName: No base or VAE has this name.
            BadFile: Its file cannot be read.
        """
        name = name or self.base_name
        if self._open is not None and name in {self._open[0], self._open[1].name} and vae == self._vae:
            return self._open[1]
        self.close()  # free the memory before the next one is loaded
        settings = self._settings
        vae_path = None if vae is None else self.library.entry(vae, "vae").path
        options = LoadOptions(settings.dtype, settings.device, vae_path, settings.offload)
        if name in {settings.base, TINY}:  # only whoever starts the server may name a path
            base = open_base(name, self.library, options)
        else:
            base = self.library.base(name, **options._asdict())
        self._open, self._vae = (name, base), vae
        return base

    def record_hashes(self) -> tuple[str | None, ...]:
        """Record and return the hashes of the server's own base, for which its files are read."""
        base = self.base()
        self.own_hashes = (base.hash, base.text_hash, base.vae_hash)
        return self.own_hashes

    def base_of(self, recipe: Recipe, name: str | None, vae: str | None = None) -> Base:
        """Return the base that a recipe is painted on: the named one, else the recipe's if it is here, else our own."""
        if name is not None or recipe.base is None:
            return self.base(name, vae)
        for key in filter(None, (recipe.base, recipe.base_hash)):
            try:
                return self.base(key, vae)
            except UnknownName:
                continue
        return self.base(vae=vae)

    def runner(self, base: Base) -> BatchRunner:
        """Return what makes batches on a base, with the texts that it has encoded already."""
        from velatura.sampling.generate import BatchRunner

        if self._runner is None or self._runner.base is not base:
            self._runner = BatchRunner(base)
        return self._runner

    def batch_pictures(self, base: Base) -> int:
        """Return how many pictures are made together: on a CPU that gains little, and rounds a little differently."""
        return self._settings.batch or (1 if base.device.type == "cpu" else DEFAULT_BATCH_PICTURES)

    def close(self) -> None:
        """Close the base, and free its memory."""
        self._open = self._runner = None
        self.library.forget_base()
