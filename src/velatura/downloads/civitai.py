"""What Civitai says of a model: which file to fetch, and its own words to keep beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from httpx2 import URL
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from velatura.downloads.destination import MODEL_ENDINGS, is_model
from velatura.downloads.partial_file import Digest
from velatura.downloads.services import Service
from velatura.downloads.transfer import RemoteFile
from velatura.downloads.web_client import WebClient, redirect_target
from velatura.errors import DownloadFailed

INFO_SUFFIX = ".civitai.info"


class _CivitaiAnswer(BaseModel):
    """A part of an answer, of which only some fields are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnswerT = TypeVar("AnswerT", bound=_CivitaiAnswer)


class _CivitaiFile(_CivitaiAnswer):
    name: str
    downloadUrl: str | None = None  # noqa: N815 - fields are called as Civitai calls them
    sizeKB: float | None = Field(default=None, ge=0, lt=2**40, allow_inf_nan=False)  # noqa: N815
    primary: bool | None = False
    hashes: dict[str, str | None] | None = None
    pickleScanResult: str | None = None  # noqa: N815
    virusScanResult: str | None = None  # noqa: N815


class _CivitaiVersion(_CivitaiAnswer):
    id: int
    modelId: int | None = None  # noqa: N815
    usageControl: str | None = "Download"  # noqa: N815
    files: tuple[_CivitaiFile, ...] = ()


class _CivitaiModel(_CivitaiAnswer):
    modelVersions: tuple[_CivitaiVersion, ...] = ()  # noqa: N815


@dataclass(frozen=True)
class CivitaiDownload:
    """A file of Civitai's and the answer that tells of it."""

    remote_file: RemoteFile
    info: dict[str, JsonValue]


def find(web: WebClient, service: Service, model: int | None, version: int | None) -> CivitaiDownload:
    """The file to fetch of a version of a model, or of its newest."""
    if version is None:
        versions = _parse_answer(_CivitaiModel, web.json(f"{service.root}/api/v1/models/{model}")).modelVersions
        if not versions:
            raise DownloadFailed(f"civitai:{model} has no version to fetch: look at {service.root}/models/{model}")
        version = versions[0].id
    answer = web.json(f"{service.root}/api/v1/model-versions/{version}")
    version_answer = _parse_answer(_CivitaiVersion, answer)
    if model is not None and version_answer.modelId not in {None, model}:
        raise DownloadFailed(
            f"version {version} is of civitai:{version_answer.modelId}, not of civitai:{model}: name one"
        )
    if version_answer.usageControl not in {None, "Download"}:
        raise DownloadFailed(f"version {version} is to be used on Civitai only, its owner says: choose another version")
    return CivitaiDownload(
        _remote_file(_choose_file(version_answer), service, version), cast("dict[str, JsonValue]", answer)
    )


def trigger_words(info: dict[str, JsonValue]) -> list[str]:
    """The words that a version wants in a prompt."""
    words = info.get("trainedWords")
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def _choose_file(version: _CivitaiVersion) -> _CivitaiFile:
    """The version's main file, or the first that is a model at all, a safetensors one before others."""
    models = [file for file in version.files if is_model(file.name)]
    if not models:
        names = ", ".join(file.name[:60] for file in version.files[:8]) or "no files at all"
        raise DownloadFailed(
            f"version {version.id} holds {names}, but none that ends in {', '.join(MODEL_ENDINGS)}: choose another version"
        )
    return min(models, key=lambda file: (not file.primary, not file.name.lower().endswith(".safetensors")))


def _remote_file(file: _CivitaiFile, service: Service, version: int) -> RemoteFile:
    if "Danger" in {file.pickleScanResult, file.virusScanResult}:
        raise DownloadFailed(f"{file.name[:80]!r} holds something dangerous, Civitai's scan says: choose another file")
    hashes = file.hashes or {}
    sha256 = hashes.get("SHA256") or hashes.get("AutoV2") or ""  # of which AutoV2 is the beginning
    base_url = URL(f"{service.root}/api/download/models/{version}")
    url = str(redirect_target(base_url, file.downloadUrl)) if file.downloadUrl else str(base_url)
    digest = Digest("sha256", sha256) if re.fullmatch("[0-9A-Fa-f]{10,64}", sha256) else None
    return RemoteFile(url, name=file.name, digest=digest, approximate_size=round((file.sizeKB or 0) * 1024))


def _parse_answer(answer_type: type[AnswerT], answer: dict[str, object]) -> AnswerT:
    try:
        return answer_type.model_validate(answer)
    except ValidationError as error:
        first: Sequence[int | str] = error.errors()[0]["loc"]
        where = ".".join(map(str, first))
        raise DownloadFailed(f"Civitai's answer has no {where} as it should: try again later") from None
