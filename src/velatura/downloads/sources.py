"""Parsing of download sources: civitai:1234, hub:owner/name, or a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from httpx2 import URL

from velatura.downloads.web_client import parse_url
from velatura.errors import DownloadFailed
from velatura.formats.hub import HUB_PREFIX, HubReference, parse_reference

CIVITAI_HOSTS = {"civitai.com", "www.civitai.com"}
HUB_HOSTS = {"huggingface.co", "hf.co"}


@dataclass(frozen=True)
class CivitaiSource:
    """A model on Civitai, or one version of it; the model may be None if the version is known."""

    model: int | None
    version: int | None = None


@dataclass(frozen=True)
class UrlSource:
    """A file with any URL."""

    url: str


DownloadSource = CivitaiSource | HubReference | UrlSource


def read_source(text: str) -> DownloadSource:
    """Parse a download source. The URL of a model's page on Civitai or the hub means that model.

    Raises:
        DownloadFailed: if the text is not a source.
    """
    text = text.strip()
    if text.startswith(HUB_PREFIX):
        return parse_reference(text)
    if text.startswith("civitai:"):
        id_match = re.fullmatch(r"civitai:(\d{1,12})(?:@(\d{1,12}))?", text)
        if id_match is None:
            raise DownloadFailed(f"{text!r} is not a model on Civitai: write civitai:1234, or civitai:1234@5678")
        return CivitaiSource(int(id_match[1]), int(id_match[2]) if id_match[2] else None)
    if not text.startswith(("http://", "https://")):
        raise DownloadFailed(f"{text!r} is not a download source: write civitai:1234, hub:owner/name, or https://...")
    url = parse_url(text)
    return _civitai_page(url) or _hub_page(url) or UrlSource(text)


def _civitai_page(url: URL) -> CivitaiSource | None:
    if url.host not in CIVITAI_HOSTS:
        return None
    version = url.params.get("modelVersionId", "")
    if id_match := re.match(r"/models/(\d{1,12})(?:/|$)", url.path):
        return CivitaiSource(int(id_match[1]), int(version) if version.isdecimal() else None)
    id_match = re.fullmatch(r"/api/download/models/(\d{1,12})", url.path)
    return CivitaiSource(None, int(id_match[1])) if id_match else None


def _hub_page(url: URL) -> HubReference | None:
    page_match = re.fullmatch(r"/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree)/([\w.-]+)(?:/(.+))?)?/?", url.path)
    if url.host not in HUB_HOSTS or page_match is None:
        return None
    repository, revision, file = page_match.groups()
    at_revision = f"@{revision}" if revision else ""
    below = f"/{file}" if file else ""
    return parse_reference(f"{HUB_PREFIX}{repository}{at_revision}{below}")
