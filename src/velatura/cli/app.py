"""The command `velatura`: its verbs, and the one boundary where an error becomes a line and an exit status."""

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import typer

from velatura.cli.screen import complain, say, show_warning
from velatura.errors import VelaturaError

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Verb(NamedTuple):
    """One line of `velatura --help`, and where the verb is found once it is called."""

    panel: str
    module: str
    name: str
    help: str

    def load(self) -> Callable[..., object] | typer.Typer:
        """Import the verb, and with it what it needs."""
        return getattr(importlib.import_module(f"velatura.cli.{self.module}"), self.name)


VERBS = {
    "demo": Verb("Start here", "demo", "demo", "Train a hypernetwork on bundled pictures and see it at work."),
    "generate": Verb("Pictures", "pictures", "generate", "Make pictures from a prompt."),
    "grid": Verb("Pictures", "pictures", "grid", "Lay pictures side by side, changing one or two things."),
    "dataset": Verb("Overlays", "dataset", "dataset", "Make a folder of pictures ready: check, crop, caption, review."),
    "train": Verb("Overlays", "training", "train", "Train an overlay on a folder of captioned pictures."),
    "resume": Verb("Overlays", "training", "resume", "Go on with a training that was broken off."),
    "list": Verb("Files", "files", "list_", "List the bases and overlays in folders."),
    "show": Verb("Files", "files", "show", "Show what a file is, and how a prompt calls it."),
    "pull": Verb("Files", "downloads", "pull", "Fetch a model file from Civitai, the hub or an address."),
    "convert": Verb("Files", "files", "convert", "Write an overlay in another file format."),
    "bake": Verb("Files", "merging", "bake", "Put overlays into a base's weights, and write a checkpoint."),
    "merge": Verb("Files", "mixing", "merge", "Merge models, or LoRAs, into one file."),
    "extract": Verb("Files", "mixing", "extract", "Write what one model has otherwise than another as a LoRA."),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, 2 for a mistake of the user's, 130 after Ctrl-C.

    words: what follows `velatura`; without it, those of this process.
    """
    words = list(sys.argv[1:] if words is None else words) or ["--help"]
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            _invoke(words)
        except typer.Exit as leaving:
            return leaving.exit_code
        except (KeyboardInterrupt, typer.Abort) as interruption:
            return _end(INTERRUPTED, "interrupted", interruption)
        except VelaturaError as error:
            return _end(MISTAKE, f"error: {error}", error)
        except typer.TyperException as error:
            return _end(MISTAKE, f"error: {error.format_message()} (see --help)", error)
        except BrokenPipeError:  # whoever read what is printed has seen enough: `velatura list | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:  # a full disk, a folder in the way, a place that is not ours
            what = f"{error.strerror or error}".lower()
            return _end(MISTAKE, f"error: {error.filename or 'a file'}: {what}; choose another place", error)
    return 0


def app_for(words: Sequence[str]) -> typer.Typer:
    """Build the application with all verbs listed, of which only the one that the words call is imported.

    A verb's options can only be known by importing it, and most verbs bring torch or pydantic along.
    """
    app = typer.Typer(add_completion=False)
    app.callback()(_velatura)
    called = next((word for word in words if not word.startswith("-")), None)
    for name, verb in VERBS.items():
        target = verb.load() if name == called else _listed
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name)
        else:
            app.command(name, help=None if name == called else verb.help, rich_help_panel=verb.panel)(target)
    return app


def _invoke(words: list[str]) -> None:
    """Run the verb, all exceptions passing: Typer's own `main` would turn Ctrl-C into a status, and lose its notes."""
    command = typer.main.get_command(app_for(words))
    with command.make_context("velatura", [*words], obj=words) as context:
        command.invoke(context)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        say(f"velatura {metadata.version('velatura')}")
        raise typer.Exit


def _velatura(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train, share and use overlays for Stable Diffusion: small networks laid over a frozen base."""


def _listed() -> None:
    """Stand in the list for a verb that is not called."""


def _end(status: int, line: str, error: BaseException) -> int:
    """Say why it ended, with what the error noted on its way here, and return the status."""
    complain("; ".join([line, *getattr(error, "__notes__", [])]))
    return status
