"""The services that models are fetched from: where they are, and who asks."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import platformdirs
from httpx2 import URL
from huggingface_hub import get_token

from velatura.errors import BadFile

CIVITAI_URL = "https://civitai.com"
HUB_URL = "https://huggingface.co"
TOKENS_FILE = "tokens.toml"


@dataclass(frozen=True)
class Service:
    """A service, the root of its addresses, and the token that is shown to that root and to no other."""

    name: str
    root: str
    token_variable: str = ""
    token: str | None = field(default=None, repr=False)

    def has_url(self, url: URL) -> bool:
        """Whether an address lies at this service itself, by scheme, host and port."""
        root = URL(self.root)
        return (url.scheme, url.host, _port(url)) == (root.scheme, root.host, _port(root))


@dataclass(frozen=True)
class Services:
    """Both services."""

    civitai: Service = Service("Civitai", CIVITAI_URL, "CIVITAI_TOKEN")
    hub: Service = Service("the hub", HUB_URL, "HF_TOKEN")

    @classmethod
    def from_environment(cls) -> Self:
        """The services that CIVITAI_ENDPOINT and HF_ENDPOINT name, or the public ones, with this user's tokens.

        Civitai's token is that of CIVITAI_TOKEN, or `civitai = "..."` in tokens.toml of velatura's configuration
        folder; the hub's is what its own client uses.
        """
        civitai = os.environ.get("CIVITAI_ENDPOINT") or CIVITAI_URL
        hub = os.environ.get("HF_ENDPOINT") or HUB_URL
        token = os.environ.get("CIVITAI_TOKEN") or _token_from_file("civitai")
        return cls(
            Service("Civitai", civitai.rstrip("/"), "CIVITAI_TOKEN", token),
            Service("the hub", hub.rstrip("/"), "HF_TOKEN", get_token()),
        )

    def find(self, url: URL) -> Service | None:
        """The service that an address lies at, if it is one of them."""
        return next((service for service in (self.civitai, self.hub) if service.has_url(url)), None)


def _token_from_file(name: str) -> str | None:
    """A token from the file for those who keep none in the environment."""
    path = Path(platformdirs.user_config_dir("velatura", appauthor=False), TOKENS_FILE)
    try:
        token = tomllib.loads(path.read_text(encoding="utf-8")).get(name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadFile(f'{path} cannot be read ({error}): write lines as {name} = "..." into it') from None
    return str(token) if token else None


def _port(url: URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
