"""The option --processes: the same command line, run in several processes that train together."""

from typing import Any

import typer

from velatura.cli.screen import print_error


def processes_option(panel: str) -> Any:
    """The option, in a panel of a verb's help; the process that launches the others never runs the verb itself."""
    help_text = "Processes that train together, one for each GPU, each with --batch pictures a step."
    return typer.Option("--processes", help=help_text, rich_help_panel=panel, callback=_launch_processes)


def _launch_processes(context: typer.Context, count: int) -> int:
    from velatura.training.launching import is_one_of_several, launch

    if count == 1 or is_one_of_several():
        return count
    status, message = launch(context.find_root().obj, count)
    if message:
        print_error(message)
    raise typer.Exit(status)
