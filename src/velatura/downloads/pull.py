"""Fetch what a person names, check it, and put it where it belongs: `pull`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from velatura.downloads import civitai, hub
from velatura.downloads.fetch import Arrived, Fetch
from velatura.downloads.part import Digest
from velatura.downloads.services import Services
from velatura.downloads.sources import OnCivitai, read_source
from velatura.downloads.transfer import OnBytes, Wanted
from velatura.downloads.web import Web
from velatura.files import replacing
from velatura.formats.hub import INDEX, Reference

LIMIT = 8_000_000_000


class Pulled(BaseModel):
    """A file, or a folder in diffusers' layout, that is here now; was_there tells that nothing had to come.

    sha256 is of a file; trigger_words and made_for are what Civitai says of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    kind: str
    sha256: str | None = None
    file_bytes: int
    trigger_words: tuple[str, ...] = ()
    made_for: str = ""
    was_there: bool = False


def pull(
    source: str,
    to: str | PathLike[str] = ".",
    *,
    limit: int = LIMIT,
    web: Web | None = None,
    on_bytes: OnBytes | None = None,
) -> Pulled:
    """Fetch civitai:ID, civitai:ID@VERSION, hub:owner/name, hub:owner/name/file, or an address into a folder.

    In a folder of A1111's or ComfyUI's layout it is put where such files lie. limit: the most bytes it may have. Until
    all has come and is checked it is called NAME.part, from which the same call goes on after a broken connection.
    """
    found = read_source(source)
    with nullcontext(web) if web else Web(Services.from_environment()) as asked:
        fetch = Fetch(asked, Path(to).expanduser(), limit, on_bytes)
        if isinstance(found, OnCivitai):
            offer = civitai.find(asked, asked.services.civitai, found.model, found.version)
            return _with_info(fetch.file(offer.wanted), offer.info)
        if isinstance(found, Reference):
            files = hub.find(asked, asked.services.hub, found)
            return _pulled(fetch.folder(files, found.name) if INDEX in files else fetch.file(*files.values()))
        return _pulled(fetch.file(Wanted(found.url)))


def _pulled(arrived: Arrived) -> Pulled:
    files = [each for each in arrived.path.rglob("*") if each.is_file()] if arrived.path.is_dir() else [arrived.path]
    return Pulled(
        path=arrived.path,
        kind=arrived.kind,
        sha256=arrived.sha256 or (None if arrived.path.is_dir() else Digest("sha256", "").of(arrived.path)),
        file_bytes=sum(each.stat().st_size for each in files),
        was_there=arrived.was_there,
    )


def _with_info(arrived: Arrived, info: dict[str, JsonValue]) -> Pulled:
    """Keep Civitai's answer beside the file, as other programs do, and what matters of it in ours."""
    with replacing(arrived.path.with_suffix(civitai.INFO)) as beside:
        beside.write_text(json.dumps(info, indent=2), encoding="utf-8")
    made_for = info.get("baseModel")
    about = {"trigger_words": civitai.trigger_words(info), "made_for": made_for if isinstance(made_for, str) else ""}
    return Pulled.model_validate({**_pulled(arrived).model_dump(), **about})
