"""Fetch what a person names, check it, and put it where it belongs: `pull`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from velatura.downloads import civitai, hub
from velatura.downloads.fetch import Fetcher, FetchResult
from velatura.downloads.partial_file import Digest
from velatura.downloads.services import Services
from velatura.downloads.sources import CivitaiSource, read_source
from velatura.downloads.transfer import OnBytes, RemoteFile
from velatura.downloads.web_client import WebClient
from velatura.files import atomic_write
from velatura.formats.checkpoints.folder_weights import INDEX_FILE
from velatura.formats.hub import HubReference

DEFAULT_LIMIT = 8_000_000_000


class PullResult(BaseModel):
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
    limit: int = DEFAULT_LIMIT,
    web: WebClient | None = None,
    on_bytes: OnBytes | None = None,
) -> PullResult:
    """Fetch civitai:ID, civitai:ID@VERSION, hub:owner/name, hub:owner/name/file, or an address into a folder.

    In a folder of A1111's or ComfyUI's layout it is put where such files lie. limit: the most bytes it may have. Until
    all has come and is checked it is called NAME.part, from which the same call goes on after a broken connection.
    """
    download_source = read_source(source)
    with nullcontext(web) if web else WebClient(Services.from_environment()) as client:
        fetcher = Fetcher(client, Path(to).expanduser(), limit, on_bytes)
        if isinstance(download_source, CivitaiSource):
            download = civitai.find(client, client.services.civitai, download_source.model, download_source.version)
            return _save_civitai_info(fetcher.fetch_file(download.remote_file), download.info)
        if isinstance(download_source, HubReference):
            files = hub.find(client, client.services.hub, download_source)
            return _pull_result(
                fetcher.fetch_folder(files, download_source.name)
                if INDEX_FILE in files
                else fetcher.fetch_file(*files.values())
            )
        return _pull_result(fetcher.fetch_file(RemoteFile(download_source.url)))


def _pull_result(fetched: FetchResult) -> PullResult:
    files = [path for path in fetched.path.rglob("*") if path.is_file()] if fetched.path.is_dir() else [fetched.path]
    return PullResult(
        path=fetched.path,
        kind=fetched.kind,
        sha256=fetched.sha256 or (None if fetched.path.is_dir() else Digest("sha256", "").compute(fetched.path)),
        file_bytes=sum(file.stat().st_size for file in files),
        was_there=fetched.was_there,
    )


def _save_civitai_info(fetched: FetchResult, info: dict[str, JsonValue]) -> PullResult:
    """Keep Civitai's answer beside the file, as other programs do, and what matters of it in ours."""
    with atomic_write(fetched.path.with_suffix(civitai.INFO_SUFFIX)) as temporary:
        temporary.write_text(json.dumps(info, indent=2), encoding="utf-8")
    made_for = info.get("baseModel")
    about = {"trigger_words": civitai.trigger_words(info), "made_for": made_for if isinstance(made_for, str) else ""}
    return PullResult.model_validate({**_pull_result(fetched).model_dump(), **about})
