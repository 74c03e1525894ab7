"""What tests of downloads stand on: a server, a folder to fetch into, and small files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.downloads.server import Server, serving
from velatura.downloads.pull import PullResult, pull
from velatura.downloads.services import Service, Services
from velatura.downloads.web_client import WebClient
from velatura.tensors import write_safetensors


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as new_server:
        yield new_server


@pytest.fixture(autouse=True)
def alone_in_the_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxies and tokens of whoever runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CIVITAI_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("velatura.downloads.services.get_token", lambda: None)
    monkeypatch.setattr("platformdirs.user_config_dir", lambda *_, **__: str(tmp_path / "config"))


@pytest.fixture
def slept() -> list[float]:
    """How long it would have been waited."""
    return []


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder to fetch into."""
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


@pytest.fixture
def web(server: Server, slept: list[float]) -> Iterator[WebClient]:
    """Both services at the one server, asked with tokens, on a clock that stands still."""
    services = Services(
        Service("Civitai", server.root, "CIVITAI_TOKEN", "secret-c"), Service("the hub", server.root, "HF_TOKEN")
    )
    with WebClient(services, sleep=slept.append, now=lambda: 1_000_000_000.0) as client:
        yield client


@pytest.fixture
def fetch(web: WebClient, desk: Path) -> Callable[..., PullResult]:
    """Pull something onto the desk."""
    return lambda source, **options: pull(source, options.pop("to", desk), web=web, **options)


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small LoRA."""
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
    tensors = {
        f"{key}.lora_down.weight": torch.randn(4, 1280, generator=torch.Generator().manual_seed(0)),
        f"{key}.lora_up.weight": torch.randn(1280, 4, generator=torch.Generator().manual_seed(1)),
        f"{key}.alpha": torch.tensor(4.0),
    }
    path = tmp_path_factory.mktemp("lora") / "ink.safetensors"
    write_safetensors(path, tensors)
    return path.read_bytes()


@pytest.fixture(scope="session")
def hypernet() -> bytes:
    """The bytes of a small hypernetwork of A1111's."""
    return (Path(__file__).parents[1] / "data" / "hypernet" / "e05_actout.pt").read_bytes()
