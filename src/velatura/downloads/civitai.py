"""What Civitai says of a model: which file to fetch, and its own words to keep beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from httpx2 import URL
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from velatura.downloads.names import ENDINGS, is_model
from velatura.downloads.part import Digest
from velatura.downloads.services import Service
from velatura.downloads.transfer import Wanted
from velatura.downloads.web import Web, redirected
from velatura.errors import DownloadFailed

INFO = ".civitai.info"


class _Answer(BaseModel):
    """A part of an answer, of which only some fields are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Kind = TypeVar("Kind", bound=_Answer)


class _File(_Answer):
    name: str
    downloadUrl: str | None = None  # noqa: N815 - fields are called as Civitai calls them
    sizeKB: float | None = Field(default=None, ge=0, lt=2**40, allow_inf_nan=False)  # noqa: N815
    primary: bool | None = False
    hashes: dict[str, str | None] | None = None
    pickleScanResult: str | None = None  # noqa: N815
    virusScanResult: str | None = None  # noqa: N815


class _Version(_Answer):
    id: int
    modelId: int | None = None  # noqa: N815
    usageControl: str | None = "Download"  # noqa: N815
    files: tuple[_File, ...] = ()


class _Model(_Answer):
    modelVersions: tuple[_Version, ...] = ()  # noqa: N815


@dataclass(frozen=True)
class Offer:
    """A file of Civitai's and the answer that tells of it."""

    wanted: Wanted
    info: dict[str, JsonValue]


def find(web: Web, service: Service, model: int | None, version: int | None) -> Offer:
    """The file to fetch of a version of a model, or of its newest."""
    if version is None:
        versions = _read(_Model, web.json(f"{service.root}/api/v1/models/{model}")).modelVersions
        if not versions:
            raise DownloadFailed(f"civitai:{model} has no version to fetch: look at {service.root}/models/{model}")
        version = versions[0].id
    answer = web.json(f"{service.root}/api/v1/model-versions/{version}")
    found = _read(_Version, answer)
    if model is not None and found.modelId not in {None, model}:
        raise DownloadFailed(f"version {version} is of civitai:{found.modelId}, not of civitai:{model}: name one")
    if found.usageControl not in {None, "Download"}:
        raise DownloadFailed(f"version {version} is to be used on Civitai only, its owner says: choose another version")
    return Offer(_wanted(_chosen(found), service, version), cast("dict[str, JsonValue]", answer))


def trigger_words(info: dict[str, JsonValue]) -> list[str]:
    """The words that a version wants in a prompt."""
    words = info.get("trainedWords")
    return [each for each in words if isinstance(each, str)] if isinstance(words, list) else []


def _chosen(version: _Version) -> _File:
    """The version's main file, or the first that is a model at all, a safetensors one before others."""
    models = [each for each in version.files if is_model(each.name)]
    if not models:
        there = ", ".join(each.name[:60] for each in version.files[:8]) or "no files at all"
        raise DownloadFailed(
            f"version {version.id} holds {there}, but none that ends in {', '.join(ENDINGS)}: choose another version"
        )
    return min(models, key=lambda each: (not each.primary, not each.name.lower().endswith(".safetensors")))


def _wanted(file: _File, service: Service, version: int) -> Wanted:
    if "Danger" in {file.pickleScanResult, file.virusScanResult}:
        raise DownloadFailed(f"{file.name[:80]!r} holds something dangerous, Civitai's scan says: choose another file")
    hashes = file.hashes or {}
    sha256 = hashes.get("SHA256") or hashes.get("AutoV2") or ""  # of which AutoV2 is the beginning
    at = URL(f"{service.root}/api/download/models/{version}")
    url = str(redirected(at, file.downloadUrl)) if file.downloadUrl else str(at)
    digest = Digest("sha256", sha256) if re.fullmatch("[0-9A-Fa-f]{10,64}", sha256) else None
    return Wanted(url, name=file.name, digest=digest, about=round((file.sizeKB or 0) * 1024))


def _read(kind: type[Kind], answer: dict[str, object]) -> Kind:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first: Sequence[int | str] = error.errors()[0]["loc"]
        where = ".".join(map(str, first))
        raise DownloadFailed(f"Civitai's answer has no {where} as it should: try again later") from None
