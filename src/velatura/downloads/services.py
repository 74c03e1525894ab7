"""Civitai and the Hugging Face hub: their addresses, the user's tokens, and the parsing of their answers."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import platformdirs
from httpx2 import URL
from huggingface_hub import get_token
from pydantic import BaseModel, ConfigDict, ValidationError

from velatura.errors import BadFile, DownloadFailed

CIVITAI_URL = "https://civitai.com"
# One site under several domains: .green shows a part of it, .red all; the API is the same everywhere
CIVITAI_HOSTS = {f"{www}civitai.{domain}" for www in ("", "www.") for domain in ("com", "red", "green")}
HUB_URL = "https://huggingface.co"
TOKENS_FILE = "tokens.toml"


@dataclass(frozen=True)
class Service:
    """A service for models.

    Attributes:
        name: Name shown to users.
        root: Beginning of all its URLs.
        token_variable: Environment variable of the user's token.
        token: The user's token. It is sent to this service only.
        other_hosts: Other hosts of this service, which are reached over https.
    """

    name: str
    root: str
    token_variable: str = ""
    token: str | None = field(default=None, repr=False)
    other_hosts: frozenset[str] = frozenset()

    def has_url(self, url: URL) -> bool:
        """Return True if a URL has the scheme, host and port of this service, or is at one of its other hosts."""
        if url.host in self.other_hosts and (url.scheme, _port(url)) == ("https", 443):
            return True
        root = URL(self.root)
        return (url.scheme, url.host, _port(url)) == (root.scheme, root.host, _port(root))


@dataclass(frozen=True)
class Services:
    """Civitai and the Hugging Face hub."""

    civitai: Service = Service("Civitai", CIVITAI_URL, "CIVITAI_TOKEN")
    hub: Service = Service("the hub", HUB_URL, "HF_TOKEN")

    @classmethod
    def from_environment(cls) -> Self:
        """Return the services with this user's tokens.

        CIVITAI_ENDPOINT and HF_ENDPOINT replace the public addresses. Civitai's token comes from CIVITAI_TOKEN, or from
        a line `civitai = "..."` of tokens.toml in velatura's configuration folder. The hub's token is that of
        huggingface_hub: HF_TOKEN, or its login.

        Raises:
            BadFile: if tokens.toml cannot be read.
        """
        civitai = os.environ.get("CIVITAI_ENDPOINT") or CIVITAI_URL
        hub = os.environ.get("HF_ENDPOINT") or HUB_URL
        token = os.environ.get("CIVITAI_TOKEN") or _token_from_file("civitai")
        civitai = civitai.rstrip("/")
        other_hosts = frozenset(CIVITAI_HOSTS if civitai == CIVITAI_URL else ())
        return cls(
            Service("Civitai", civitai, "CIVITAI_TOKEN", token, other_hosts),
            Service("the hub", hub.rstrip("/"), "HF_TOKEN", get_token()),
        )

    def find(self, url: URL) -> Service | None:
        """Return the service that a URL belongs to, or None."""
        return next((service for service in (self.civitai, self.hub) if service.has_url(url)), None)


class ServiceAnswer(BaseModel):
    """A part of a JSON answer. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def parse(cls, answer: dict[str, object], service: str) -> Self:
        """Validate an answer; raise DownloadFailed with the service's name and the first field that is wrong."""
        try:
            return cls.model_validate(answer)
        except ValidationError as error:
            field_path = ".".join(map(str, error.errors()[0]["loc"]))
            raise DownloadFailed(
                f"{service}'s answer has a missing or wrong field {field_path}: try again later"
            ) from None


def _token_from_file(name: str) -> str | None:
    """Return a token of tokens.toml, or None."""
    path = Path(platformdirs.user_config_dir("velatura", appauthor=False), TOKENS_FILE)
    try:
        token = tomllib.loads(path.read_text(encoding="utf-8")).get(name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadFile(f'{path} cannot be read ({error}): write lines such as {name} = "..." into it') from None
    return str(token) if token else None


def _port(url: URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
