"""pull: download a model from Civitai, the Hugging Face hub or a URL into the right folder."""

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
from velatura.formats.checkpoints import INDEX_FILE
from velatura.formats.hub import HubReference

DEFAULT_LIMIT = 8_000_000_000


class PullResult(BaseModel):
    """A downloaded model.

    Attributes:
        path: File, or folder in diffusers' layout.
        kind: Kind of model, such as "lora".
        sha256: SHA-256 of a file; None for a folder.
        file_bytes: Bytes of all files.
        trigger_words: Words that call the model in a prompt, as Civitai states them.
        made_for: Base model, as Civitai states it.
        was_there: True if it existed already and nothing was downloaded.
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
    """Download a model into a folder, and check it.

    Until it is complete and checked a file is called NAME.part. After a broken connection the same call resumes it.

    Args:
        source: civitai:ID, civitai:ID@VERSION, hub:owner/name, hub:owner/name/file, or a URL.
        to: Target folder. In a folder with A1111's or ComfyUI's layout, the file goes to the subfolder for its kind.
        limit: Maximum bytes.
        web: Client for the requests; None for a new one with this user's tokens.
        on_bytes: Called with the bytes so far, and with the total if it is known.

    Raises:
        DownloadFailed: if the source is not understood, does not exist, or the download fails.
        AlreadyExists: if another file has the name.
        BadFile: if the content is not a model file.
    """
    download_source = read_source(source)
    with nullcontext(web) if web else WebClient(Services.from_environment()) as client:
        fetcher = Fetcher(client, Path(to).expanduser(), limit, on_bytes)
        if isinstance(download_source, CivitaiSource):
            download = civitai.find(client, client.services.civitai, download_source.model, download_source.version)
            return _save_civitai_info(fetcher.fetch_file(download.remote_file), download.info)
        if isinstance(download_source, HubReference):
            files = hub.find(client, client.services.hub, download_source)
            if INDEX_FILE in files:
                return _pull_result(fetcher.fetch_folder(files, download_source.name))
            [remote_file] = files.values()
            return _pull_result(fetcher.fetch_file(remote_file))
        return _pull_result(fetcher.fetch_file(RemoteFile(download_source.url)))


def _pull_result(fetched: FetchResult) -> PullResult:
    path = fetched.path
    if path.is_dir():
        sha256 = fetched.sha256
        files = [file for file in path.rglob("*") if file.is_file()]
    else:
        sha256 = fetched.sha256 or Digest("sha256", "").compute(path)
        files = [path]
    return PullResult(
        path=path,
        kind=fetched.kind,
        sha256=sha256,
        file_bytes=sum(file.stat().st_size for file in files),
        was_there=fetched.was_there,
    )


def _save_civitai_info(fetched: FetchResult, info: dict[str, JsonValue]) -> PullResult:
    """Save Civitai's metadata beside the file, as other programs do, and add trigger words and base to the result."""
    with atomic_write(fetched.path.with_suffix(civitai.INFO_SUFFIX)) as temporary:
        temporary.write_text(json.dumps(info, indent=2), encoding="utf-8")
    made_for = info.get("baseModel")
    about = {"trigger_words": civitai.trigger_words(info), "made_for": made_for if isinstance(made_for, str) else ""}
    return PullResult.model_validate({**_pull_result(fetched).model_dump(), **about})
