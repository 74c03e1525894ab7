"""The verb `pull`: fetch a file from Civitai, the hub or any address."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velatura.cli.screen import say, say_json

if TYPE_CHECKING:
    from velatura.downloads.pull import Pulled

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def pull(
    source: Annotated[
        str, typer.Argument(help="civitai:ID, civitai:ID@VERSION, hub:OWNER/NAME, hub:OWNER/NAME/FILE, or an address.")
    ],
    *,
    to: Annotated[Path, typer.Option(help="A folder; A1111's and ComfyUI's layouts are understood.")] = Path(),
    limit: Annotated[str, typer.Option(help="The most that it may have: 500MB, 8GB, ...")] = "8GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Fetch a model file, check it, and put it where files of its kind lie.

    Given again, the same command goes on where a connection broke. CIVITAI_TOKEN and HF_TOKEN say who asks.

    velatura pull civitai:4201 --to ~/stable-diffusion-webui

    velatura pull hub:owner/name/ink.safetensors --to models/ --limit 500MB
    """
    most = read_size(limit)
    from velatura.downloads.pull import pull as fetch

    with _bar() as on_bytes:
        done = fetch(source, to, limit=most, on_bytes=on_bytes)
    if as_json:
        say_json(done.model_dump_json(indent=2))
        return
    _tell(done)


def read_size(text: str) -> int:
    """Read a count of bytes as people write it: 8GB, 500 MB, 2.5GiB."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size: write it as 500MB or 8GB")
    return round(float(found[1]) * (BINARY if found[3] else UNITS)[found[2]])


def _tell(done: "Pulled") -> None:
    """Say what has come and where it lies."""
    was_there = ", was there already" if done.was_there else ""
    made_for = f" for {done.made_for}" if done.made_for else ""
    say(f"{done.path}: {done.kind}{made_for}, {done.file_bytes / 1e6:,.1f} MB{was_there}")
    if done.sha256:
        say(f"hash: {done.sha256[:10]} (SHA-256 {done.sha256})")
    if done.trigger_words:
        say(f"trigger words: {', '.join(done.trigger_words)}")


@contextmanager
def _bar() -> Generator[Callable[[int, int | None], None]]:
    """A bar of the bytes here, on stderr, with the speed and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("fetching", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
