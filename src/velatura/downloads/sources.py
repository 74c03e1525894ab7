"""Parsing of download sources: civitai:1234, hub:owner/name, or a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from httpx2 import URL

from velatura.downloads.services import CIVITAI_HOSTS
from velatura.downloads.web_client import parse_url
from velatura.errors import DownloadFailed
from velatura.formats.hub import HUB_PREFIX, HubReference, parse_reference

HUB_HOSTS = {"huggingface.co", "hf.co"}
# AIR, Civitai's names for models anywhere: urn:air:sd1:lora:civitai:123@456, with or without the family and the type
AIR_PATTERN = re.compile(
    r"(?:urn:)?air:(?:[^:@/]+:){0,2}(?P<source>[a-z][\w.-]*):(?P<id>[^:@]+)(?:@(?P<version>[^:@]+))?",
    re.IGNORECASE,
)


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
    """Parse a download source. The URL of a model's page on Civitai or the hub means that model, and so does its AIR.

    Args:
        text: civitai:ID or civitai:ID@VERSION, an AIR such as urn:air:sd1:lora:civitai:ID@VERSION, hub:owner/name, or
            a URL; the addresses of Civitai and the hub may lack https://.

    Raises:
        DownloadFailed: if the text is not a source.
    """
    text = text.strip()
    if text.startswith(HUB_PREFIX):
        return parse_reference(text)
    if text.lower().startswith("civitai:"):
        return _civitai_ids(text, text[len("civitai:") :])
    if text.lower().startswith(("urn:air:", "air:")):
        return _read_air(text)
    if text.partition("/")[0].lower() in CIVITAI_HOSTS | HUB_HOSTS:
        text = f"https://{text}"
    if not text.startswith(("http://", "https://")):
        raise DownloadFailed(f"{text!r} is not a download source: write civitai:1234, hub:owner/name, or https://...")
    url = parse_url(text)
    return _civitai_page(url) or _hub_page(url) or UrlSource(text)


def _civitai_ids(text: str, ids: str) -> CivitaiSource:
    """Parse MODEL or MODEL@VERSION; `text` is what the user wrote."""
    id_match = re.fullmatch(r"(\d{1,12})(?:@(\d{1,12}))?", ids, re.ASCII)
    if id_match is None:
        raise DownloadFailed(f"{text!r} is not a model on Civitai: write civitai:1234, or civitai:1234@5678")
    return CivitaiSource(int(id_match[1]), int(id_match[2]) if id_match[2] else None)


def _read_air(text: str) -> DownloadSource:
    """Parse an AIR: its family and its type say nothing that the file does not say itself."""
    match = AIR_PATTERN.fullmatch(text)
    if match is None:
        raise DownloadFailed(f"{text!r} is not a complete AIR: write it as urn:air:sd1:lora:civitai:1234@5678")
    at_version = f"@{match['version']}" if match["version"] else ""
    source = match["source"].lower()
    if source == "civitai":
        return _civitai_ids(text, re.sub(r"\.\w+$", "", match["id"] + at_version))  # without a format, .safetensors
    if source == "huggingface":
        return parse_reference(f"{HUB_PREFIX}{match['id']}{at_version}")
    raise DownloadFailed(f"{text!r} is a model of {source}: velatura downloads from civitai and huggingface")


def _civitai_page(url: URL) -> CivitaiSource | None:
    if url.host not in CIVITAI_HOSTS:
        return None
    version = url.params.get("modelVersionId", "")
    if id_match := re.match(r"(?:/api/v1)?/models/(\d{1,12})(?:/|$)", url.path):
        return CivitaiSource(int(id_match[1]), int(version) if version.isdecimal() else None)
    id_match = re.fullmatch(r"(?:/api/download/models|(?:/api/v1)?/model-versions)/(\d{1,12})/?", url.path)
    return CivitaiSource(None, int(id_match[1])) if id_match else None


def _hub_page(url: URL) -> HubReference | None:
    page_match = re.fullmatch(r"/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree)/([\w.-]+)(?:/(.+))?)?/?", url.path)
    if url.host not in HUB_HOSTS or page_match is None:
        return None
    repository, revision, file = page_match.groups()
    at_revision = f"@{revision}" if revision else ""
    below = f"/{file}" if file else ""
    return parse_reference(f"{HUB_PREFIX}{repository}{at_revision}{below}")
