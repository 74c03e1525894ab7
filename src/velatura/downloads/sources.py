"""What a person writes to say which file they mean: civitai:1234, hub:owner/name, or an address."""

from __future__ import annotations

import re
from dataclasses import dataclass

from httpx2 import URL

from velatura.downloads.web import readable
from velatura.errors import DownloadFailed
from velatura.formats.hub import PREFIX, Reference, read_reference

CIVITAI_HOSTS = {"civitai.com", "www.civitai.com"}
HUB_HOSTS = {"huggingface.co", "hf.co"}


@dataclass(frozen=True)
class OnCivitai:
    """A model of Civitai's, or one version of it."""

    model: int | None
    version: int | None = None


@dataclass(frozen=True)
class Address:
    """A file anywhere on the web."""

    url: str


Source = OnCivitai | Reference | Address


def read_source(text: str) -> Source:
    """Read what names a file to fetch; addresses of pages of the two services mean the models on them."""
    text = text.strip()
    if text.startswith(PREFIX):
        return read_reference(text)
    if text.startswith("civitai:"):
        found = re.fullmatch(r"civitai:(\d{1,12})(?:@(\d{1,12}))?", text)
        if found is None:
            raise DownloadFailed(f"{text!r} names nothing on Civitai: write civitai:1234, or civitai:1234@5678")
        return OnCivitai(int(found[1]), int(found[2]) if found[2] else None)
    if not text.startswith(("http://", "https://")):
        raise DownloadFailed(f"{text!r} names nothing to fetch: write civitai:1234, hub:owner/name, or https://...")
    url = readable(text)
    return _civitai_page(url) or _hub_page(url) or Address(text)


def _civitai_page(url: URL) -> OnCivitai | None:
    if url.host not in CIVITAI_HOSTS:
        return None
    version = url.params.get("modelVersionId", "")
    if found := re.match(r"/models/(\d{1,12})(?:/|$)", url.path):
        return OnCivitai(int(found[1]), int(version) if version.isdecimal() else None)
    found = re.fullmatch(r"/api/download/models/(\d{1,12})", url.path)
    return OnCivitai(None, int(found[1])) if found else None


def _hub_page(url: URL) -> Reference | None:
    found = re.fullmatch(r"/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree)/([\w.-]+)(?:/(.+))?)?/?", url.path)
    if url.host not in HUB_HOSTS or found is None:
        return None
    at = f"@{found[2]}" if found[2] else ""
    return read_reference(f"{PREFIX}{found[1]}{at}{f'/{found[3]}' if found[3] else ''}")
