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

CIVITAI = "https://civitai.com"
HUB = "https://huggingface.co"
TOKENS = "tokens.toml"


@dataclass(frozen=True)
class Service:
    """A service, the root of its addresses, and the token that is shown to that root and to no other."""

    name: str
    root: str
    variable: str = ""
    token: str | None = field(default=None, repr=False)

    def has(self, url: URL) -> bool:
        """Whether an address lies at this service itself, by scheme, host and port."""
        root = URL(self.root)
        return (url.scheme, url.host, _port(url)) == (root.scheme, root.host, _port(root))


@dataclass(frozen=True)
class Services:
    """Both services."""

    civitai: Service = Service("Civitai", CIVITAI, "CIVITAI_TOKEN")
    hub: Service = Service("the hub", HUB, "HF_TOKEN")

    @classmethod
    def from_environment(cls) -> Self:
        """The services that CIVITAI_ENDPOINT and HF_ENDPOINT name, or the public ones, with this user's tokens.

        Civitai's token is that of CIVITAI_TOKEN, or `civitai = "..."` in tokens.toml of velatura's configuration
        folder; the hub's is what its own client uses.
        """
        civitai = os.environ.get("CIVITAI_ENDPOINT") or CIVITAI
        hub = os.environ.get("HF_ENDPOINT") or HUB
        token = os.environ.get("CIVITAI_TOKEN") or _written("civitai")
        return cls(
            Service("Civitai", civitai.rstrip("/"), "CIVITAI_TOKEN", token),
            Service("the hub", hub.rstrip("/"), "HF_TOKEN", get_token()),
        )

    def at(self, url: URL) -> Service | None:
        """The service that an address lies at, if it is one of them."""
        return next((each for each in (self.civitai, self.hub) if each.has(url)), None)


def _written(name: str) -> str | None:
    """A token from the file for those who keep none in the environment."""
    path = Path(platformdirs.user_config_dir("velatura", appauthor=False), TOKENS)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get(name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadFile(f'{path} cannot be read ({error}): write lines as {name} = "..." into it') from None
    return str(found) if found else None


def _port(url: URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
