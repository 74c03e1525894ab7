"""Run the command `velatura`: load the subcommand that is called, and turn errors into one line and an exit status."""

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import typer

from velatura.cli.screen import print_error, say, show_warning
from velatura.cli.train.processes import INTERRUPTED_STATUS, run_as_one_of_several
from velatura.errors import VelaturaError
from velatura.imports import pause_garbage_collection, run_as_own_process

USER_ERROR_STATUS = 2


class LazyCommand(NamedTuple):
    """A line of `velatura --help`, with the module and function that run the command once it is called."""

    panel: str
    module: str
    name: str
    help: str

    def load(self) -> Callable[..., object] | typer.Typer:
        """Import the command's module and return its function."""
        with pause_garbage_collection():
            return getattr(importlib.import_module(f"velatura.cli.{self.module}"), self.name)


COMMANDS = {
    "demo": LazyCommand("Start here", "demo", "demo", "Train a hypernetwork on bundled pictures and see it at work."),
    "generate": LazyCommand("Pictures", "generate", "generate", "Make pictures from a prompt."),
    "grid": LazyCommand(
        "Pictures", "generate", "grid", "Compare pictures side by side, changing one to three settings."
    ),
    "measure": LazyCommand(
        "Pictures", "compare.measure", "measure", "Measure how like two folders of pictures are, in content and style."
    ),
    "upscale": LazyCommand("Pictures", "upscale", "upscale", "Enlarge a picture by a network, or restore its faces."),
    "tune": LazyCommand("Overlays", "compare.tune", "tune", "Find the strength of an overlay that serves best."),
    "compare": LazyCommand(
        "Overlays", "compare.study", "compare", "Train every kind on your pictures, and measure which one serves best."
    ),
    "sweep": LazyCommand(
        "Overlays", "compare.sweep", "sweep", "Try settings of a training, and train the winner to the end."
    ),
    "choose": LazyCommand(
        "Overlays", "train.choose", "choose", "Choose which kind of overlay to train, and see what it costs."
    ),
    "dataset": LazyCommand(
        "Overlays", "dataset", "dataset", "Prepare a folder of pictures: check, crop, caption, review."
    ),
    "train": LazyCommand("Overlays", "train.app", "train", "Train an overlay on a folder of captioned pictures."),
    "resume": LazyCommand("Overlays", "train.app", "resume", "Continue an interrupted training."),
    "serve": LazyCommand("Start here", "serve", "serve", "Paint and train in the browser, and serve A1111's HTTP API."),
    "list": LazyCommand("Files", "files.commands", "list_", "List the bases and overlays in folders."),
    "show": LazyCommand("Files", "files.commands", "show", "Show what a file is and how to use it in a prompt."),
    "pull": LazyCommand(
        "Files", "files.pull", "pull", "Download a model file from Civitai, the Hugging Face hub or a URL."
    ),
    "convert": LazyCommand("Files", "files.commands", "convert", "Write an overlay in another file format."),
    "bake": LazyCommand("Files", "bake", "bake", "Bake overlays into the weights of a base and write a checkpoint."),
    "merge": LazyCommand("Files", "merge", "merge", "Merge models, or LoRAs, into one file."),
    "extract": LazyCommand("Files", "merge", "extract", "Extract the difference between two models as a LoRA."),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        words: The arguments after `velatura`; None means those of this process.

    Returns:
        The exit status: 0, or 2 after a user's mistake, or 130 after Ctrl-C.
    """
    if words is None:
        with run_as_own_process():
            return _run_in_processes(sys.argv[1:])
    return _run_in_processes(words)


def _run_in_processes(words: Sequence[str]) -> int:
    """Run a command line in this process, which may be one of several that train together."""
    words = list(words) or ["--help"]
    if os.environ.get("WORLD_SIZE", "1") != "1":  # started by --processes, accelerate or torchrun
        return run_as_one_of_several(lambda: _run_and_report(words))
    return _run_and_report(words)


def _run_and_report(words: list[str]) -> int:
    """Run the verb and turn errors into a line and an exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            _run_command(words)
        except typer.Exit as exit_request:
            return exit_request.exit_code
        except (KeyboardInterrupt, typer.Abort) as interruption:
            return _report_failure(INTERRUPTED_STATUS, "interrupted", interruption)
        except VelaturaError as error:
            return _report_failure(USER_ERROR_STATUS, f"error: {error}", error)
        except typer.TyperException as error:
            return _report_failure(USER_ERROR_STATUS, f"error: {_describe_misuse(error)} (see --help)", error)
        except BrokenPipeError:  # the reader closed the pipe: `velatura list | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:  # a full disk, a folder in the way, a missing permission
            reason = f"{error.strerror or error}".lower()
            return _report_failure(
                USER_ERROR_STATUS, f"error: {error.filename or 'a file'}: {reason}; choose another place", error
            )
    return 0


def build_app(words: Sequence[str]) -> typer.Typer:
    """Build the application with every command listed, and import only the one that is called.

    A command's options are known only once its module is imported, and most modules import torch or pydantic.

    Args:
        words: The arguments after `velatura`.
    """
    app = typer.Typer(add_completion=False)
    app.callback()(_main_callback)
    called_name = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        target = command.load() if name == called_name else _placeholder
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name)
        else:
            app.command(name, help=None if name == called_name else command.help, rich_help_panel=command.panel)(target)
    return app


def _run_command(words: list[str]) -> None:
    """Run the command and let exceptions pass: Typer's `main` turns Ctrl-C into a status and loses its notes."""
    command = typer.main.get_command(build_app(words))
    with command.make_context("velatura", [*words], obj=words) as context:
        command.invoke(context)


def _describe_misuse(error: typer.TyperException) -> str:
    """Return Typer's message; for an unknown option the name that it has here."""
    if not hasattr(error, "possibilities"):
        return error.format_message()
    from velatura.cli.unknown_option import describe_unknown_option

    parameters = getattr(getattr(getattr(error, "ctx", None), "command", None), "params", [])
    options = {str(parameter.name): str(parameter.opts[0]) for parameter in parameters}
    return describe_unknown_option(str(getattr(error, "option_name", "")), options)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib import metadata

        say(f"velatura {metadata.version('velatura')}")
        raise typer.Exit


def _main_callback(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train, share and use overlays for Stable Diffusion: small networks attached to a frozen base."""


def _placeholder() -> None:
    """Stand in the list for a command that is not called."""


def _report_failure(status: int, message: str, error: BaseException) -> int:
    """Print why the command ended, with the error's notes, and return the status."""
    print_error("; ".join([message, *getattr(error, "__notes__", [])]))
    return status
