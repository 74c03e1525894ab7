"""Civitai's API: the file to download for a model or a version, and the metadata to save beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from httpx2 import URL
from pydantic import Field, JsonValue

from velatura.downloads.destination import MODEL_ENDINGS, is_model
from velatura.downloads.partial_file import Digest
from velatura.downloads.services import Service, ServiceAnswer
from velatura.downloads.transfer import RemoteFile
from velatura.downloads.web_client import WebClient, redirect_target
from velatura.errors import DownloadFailed

INFO_SUFFIX = ".civitai.info"


class _CivitaiFile(ServiceAnswer):
    name: str
    downloadUrl: str | None = None  # noqa: N815 - fields have Civitai's names
    sizeKB: float | None = Field(default=None, ge=0, lt=2**40, allow_inf_nan=False)  # noqa: N815
    primary: bool | None = False
    hashes: dict[str, str | None] | None = None
    pickleScanResult: str | None = None  # noqa: N815
    virusScanResult: str | None = None  # noqa: N815


class _CivitaiVersion(ServiceAnswer):
    id: int
    modelId: int | None = None  # noqa: N815
    usageControl: str | None = "Download"  # noqa: N815
    files: tuple[_CivitaiFile, ...] = ()


class _CivitaiModel(ServiceAnswer):
    modelVersions: tuple[_CivitaiVersion, ...] = ()  # noqa: N815


@dataclass(frozen=True)
class CivitaiDownload:
    """A file on Civitai, and the metadata of its version as Civitai's API returns it."""

    remote_file: RemoteFile
    info: dict[str, JsonValue]


def find(web: WebClient, service: Service, model: int | None, version: int | None) -> CivitaiDownload:
    """Find the file to download.

    Args:
        web: Client for the requests.
        service: Civitai, or a server with the same API.
        model: Id of the model; None if the version is known.
        version: Id of the version; None for the model's newest.

    Raises:
        DownloadFailed: if the model or version does not exist, does not allow downloads or holds no model file.
    """
    if version is None:
        version = _newest_version(web, service, model)
    answer = web.json(f"{service.root}/api/v1/model-versions/{version}")
    version_answer = _CivitaiVersion.parse(answer, "Civitai")
    if model is not None and version_answer.modelId not in {None, model}:
        raise DownloadFailed(
            f"version {version} belongs to civitai:{version_answer.modelId}, not to civitai:{model}: name one of them"
        )
    if version_answer.usageControl not in {None, "Download"}:
        raise DownloadFailed(f"version {version} can only be used on Civitai, by its owner's choice: choose another")
    return CivitaiDownload(
        _remote_file(_choose_file(version_answer), service, version), cast("dict[str, JsonValue]", answer)
    )


def trigger_words(info: dict[str, JsonValue]) -> list[str]:
    """Return the trigger words of a version, from the metadata of CivitaiDownload."""
    words = info.get("trainedWords")
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def _newest_version(web: WebClient, service: Service, model: int | None) -> int:
    answer = web.json(f"{service.root}/api/v1/models/{model}")
    versions = _CivitaiModel.parse(answer, "Civitai").modelVersions
    if not versions:
        raise DownloadFailed(f"civitai:{model} has no version to download: look at {service.root}/models/{model}")
    return versions[0].id


def _choose_file(version: _CivitaiVersion) -> _CivitaiFile:
    """Return the version's primary file, else its first safetensors file, else its first model file."""
    models = [file for file in version.files if is_model(file.name)]
    if not models:
        names = ", ".join(file.name[:60] for file in version.files[:8]) or "no files at all"
        raise DownloadFailed(
            f"version {version.id} holds {names}, but no file that ends in {', '.join(MODEL_ENDINGS)}: "
            "choose another version"
        )
    return min(models, key=lambda file: (not file.primary, not file.name.lower().endswith(".safetensors")))


def _remote_file(file: _CivitaiFile, service: Service, version: int) -> RemoteFile:
    if "Danger" in {file.pickleScanResult, file.virusScanResult}:
        raise DownloadFailed(f"Civitai's scan found something dangerous in {file.name[:80]!r}: choose another file")
    hashes = file.hashes or {}
    sha256 = hashes.get("SHA256") or hashes.get("AutoV2") or ""  # AutoV2: the first ten digits of the SHA-256
    base_url = URL(f"{service.root}/api/download/models/{version}")
    url = str(redirect_target(base_url, file.downloadUrl)) if file.downloadUrl else str(base_url)
    digest = Digest("sha256", sha256) if re.fullmatch("[0-9A-Fa-f]{10,64}", sha256) else None
    return RemoteFile(url, name=file.name, digest=digest, approximate_size=round((file.sizeKB or 0) * 1024))
