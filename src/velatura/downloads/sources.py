"""What a person writes to say which file they mean: civitai:1234, hub:owner/name, or an address."""

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
    """A model of Civitai's, or one version of it."""

    model: int | None
    version: int | None = None


@dataclass(frozen=True)
class UrlSource:
    """A file anywhere on the web."""

    url: str


DownloadSource = CivitaiSource | HubReference | UrlSource


def read_source(text: str) -> DownloadSource:
    """Read what names a file to fetch; addresses of pages of the two services mean the models on them."""
    text = text.strip()
    if text.startswith(HUB_PREFIX):
        return parse_reference(text)
    if text.startswith("civitai:"):
        id_match = re.fullmatch(r"civitai:(\d{1,12})(?:@(\d{1,12}))?", text)
        if id_match is None:
            raise DownloadFailed(f"{text!r} names nothing on Civitai: write civitai:1234, or civitai:1234@5678")
        return CivitaiSource(int(id_match[1]), int(id_match[2]) if id_match[2] else None)
    if not text.startswith(("http://", "https://")):
        raise DownloadFailed(f"{text!r} names nothing to fetch: write civitai:1234, hub:owner/name, or https://...")
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
    revision = f"@{page_match[2]}" if page_match[2] else ""
    return parse_reference(f"{HUB_PREFIX}{page_match[1]}{revision}{f'/{page_match[3]}' if page_match[3] else ''}")
