"""Run `velatura pull`: download a file from Civitai, the Hugging Face hub or a URL."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velatura.cli.screen import progress_bar, say, say_json

if TYPE_CHECKING:
    from velatura.downloads.pull import PullResult

DECIMAL_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def pull(
    source: Annotated[
        str, typer.Argument(help="civitai:ID, civitai:ID@VERSION, hub:OWNER/NAME, hub:OWNER/NAME/FILE, or an address.")
    ],
    *,
    to: Annotated[Path, typer.Option(help="A folder; A1111's and ComfyUI's layouts are understood.")] = Path(),
    limit: Annotated[str, typer.Option(help="The most that it may have: 500MB, 8GB, ...")] = "8GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Download a model file, check it, and put it into the folder for its kind.

    The same command resumes an interrupted download. CIVITAI_TOKEN and HF_TOKEN are sent to their sites.

    velatura pull civitai:4201 --to ~/stable-diffusion-webui

    velatura pull hub:owner/name/ink.safetensors --to models/ --limit 500MB
    """
    max_bytes = parse_byte_count(limit)
    from velatura.downloads.sources import read_source

    read_source(source)  # before torch is imported
    from velatura.downloads.pull import pull as fetch

    with _download_bar() as on_bytes:
        result = fetch(source, to, limit=max_bytes, on_bytes=on_bytes)
    if as_json:
        say_json(result.model_dump_json(indent=2))
        return
    _print_result(result)


def parse_byte_count(text: str) -> int:
    """Read a count of bytes as people write it: 8GB, 500 MB, 2.5GiB."""
    size_match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if size_match is None:
        raise typer.BadParameter(f"{text!r} is not a size: write it as 500MB or 8GB")
    return round(float(size_match[1]) * (BINARY_UNITS if size_match[3] else DECIMAL_UNITS)[size_match[2]])


def _print_result(result: "PullResult") -> None:
    """Print what was downloaded and where it is."""
    was_there = ", was there already" if result.was_there else ""
    made_for = f" for {result.made_for}" if result.made_for else ""
    say(f"{result.path}: {result.kind}{made_for}, {result.file_bytes / 1e6:,.1f} MB{was_there}")
    if result.sha256:
        say(f"hash: {result.sha256[:10]} (SHA-256 {result.sha256})")
    if result.trigger_words:
        say(f"trigger words: {', '.join(result.trigger_words)}")


@contextmanager
def _download_bar() -> Generator[Callable[[int, int | None], None]]:
    """Show a bar of the bytes received on stderr, with the speed and the time left."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with progress_bar("downloading", *columns) as update:
        yield update
