"""Bases of the hub: what is needed of a repository, and its cache, asked of a server on loopback."""

import hashlib
from pathlib import Path

import pytest

import velatura
from tests.downloads.server import serving, status
from velatura.errors import BadFile, DownloadFailed
from velatura.formats.hub import fetch, select_files

SHA = "b" * 40
WHOLE = {
    "model_index.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
    "unet/diffusion_pytorch_model.bin": b"pickles",
    "feature_extractor/preprocessor_config.json": b"{}",
}
KEPT = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving() as server:
        yield server


def offer(server, files, repo="owner/name"):
    """Answer as the hub's client asks."""
    tree = [
        {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
        for path, body in files.items()
    ]
    for revision in ("main", SHA):
        server.says(f"/api/models/{repo}/revision/{revision}", {"id": repo, "sha": SHA, "siblings": []})
        server.says(f"/api/models/{repo}/tree/{revision}", tree)
        for path, body in files.items():
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            server.offers(f"/{repo}/resolve/{revision}/{path}", body, etag=etag, headers={"X_Repo_Commit": SHA})


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_the_files_that_a_base_is_read_from_are_fetched(hub, tmp_path):
    offer(hub, WHOLE)
    kept = fetch("hub:owner/name", endpoint=hub.root, cache=tmp_path)
    assert names(kept) == KEPT
    assert (kept / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == b"weights"


def test_the_cache_is_used_when_the_hub_cannot_be_reached(hub, tmp_path):
    offer(hub, WHOLE)
    first = fetch("hub:owner/name", endpoint=hub.root, cache=tmp_path)
    assert fetch("hub:owner/name", endpoint="http://127.0.0.1:9", cache=tmp_path) == first


def test_a_base_from_the_hub_has_the_name_of_its_repository(hub, tmp_path, monkeypatch, tiny):
    tinys = Path(velatura.__file__).parent / "data" / "tiny"
    offer(hub, {each.relative_to(tinys).as_posix(): each.read_bytes() for each in tinys.rglob("*") if each.is_file()})
    monkeypatch.setenv("HF_ENDPOINT", hub.root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = velatura.open_base("hub:owner/name", device="cpu")
    assert (base.name, base.hash) == ("name", tiny.hash)


def test_one_file_is_fetched_and_cached(hub, tmp_path):
    offer(hub, {"sub/ink.safetensors": b"weights"})
    path = fetch("hub:owner/name/sub/ink.safetensors", endpoint=hub.root, cache=tmp_path)
    assert path.read_bytes() == b"weights"
    assert fetch("hub:owner/name/sub/ink.safetensors", endpoint="http://127.0.0.1:9", cache=tmp_path) == path


def test_the_only_checkpoint_is_fetched(hub, tmp_path):
    offer(hub, {"ink.ckpt": b"weights", "README.md": b"#"})
    assert fetch("hub:owner/name", endpoint=hub.root, cache=tmp_path).name == "ink.ckpt"


def test_the_endpoint_may_be_in_the_environment(hub, tmp_path, monkeypatch):
    offer(hub, WHOLE)
    monkeypatch.setenv("HF_ENDPOINT", hub.root)
    assert names(fetch("hub:owner/name", cache=tmp_path)) == KEPT


def test_a_base_that_is_neither_cached_nor_reachable_is_refused(tmp_path):
    with pytest.raises(DownloadFailed, match=r"is not complete in the cache, .* go online"):
        fetch("hub:owner/name", endpoint="http://127.0.0.1:9", cache=tmp_path)
    with pytest.raises(DownloadFailed, match=r"is not complete in the cache, .* go online"):
        fetch("hub:owner/name/ink.ckpt", endpoint="http://127.0.0.1:9", cache=tmp_path)


@pytest.mark.parametrize(
    ("code", "why", "message"),
    [
        (401, "RepoNotFound", "is not on the hub: check its name; if it is private, set HF_TOKEN"),
        (403, "GatedRepo", "asks you to accept its terms: accept them at .*/owner/name, then set HF_TOKEN"),
        (404, "RevisionNotFound", "has no revision 'main': check it"),
        (403, "", "the hub says 403"),
    ],
)
def test_a_refusal_says_what_to_do(hub, tmp_path, code, why, message):
    hub.replies["/api/models/owner/name/tree/main"] = status(code, X_Error_Code=why)
    with pytest.raises(DownloadFailed, match=message):
        fetch("hub:owner/name", endpoint=hub.root, cache=tmp_path)


def test_a_missing_file_is_named(hub, tmp_path):
    hub.replies["/owner/name/resolve/main/ink.ckpt"] = status(404, X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
    with pytest.raises(DownloadFailed, match=r"has no file 'ink\.ckpt'"):
        fetch("hub:owner/name/ink.ckpt", endpoint=hub.root, cache=tmp_path)


def weights_of(*found):
    return select_files(["model_index.json", *(f"unet/{each}" for each in found)], "hub:owner/name")[1:]


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (
            ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"],
            ["diffusion_pytorch_model.fp16.safetensors"],
        ),
        (
            ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"],
            ["diffusion_pytorch_model.safetensors"],
        ),
        (["diffusion_pytorch_model.bin"], ["diffusion_pytorch_model.bin"]),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_flax_model.msgpack"], []),
        (
            [
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            ],
            [
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
            ],
        ),
        (
            [
                "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
            ],
            [
                "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
            ],
        ),
    ],
)
def test_weights_are_chosen_once(there, chosen):
    assert weights_of(*there) == [f"unet/{each}" for each in chosen]


def test_both_text_encoders_of_sdxl_are_fetched():
    files = [f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2", "image_encoder")]
    files += [f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in ("vocab.json", "merges.txt")]
    files += ["scheduler/scheduler_config.json", "unet/openvino_model.bin", "unet/model.onnx", "README.md"]
    left_out = {"image_encoder/model.safetensors", "unet/openvino_model.bin", "unet/model.onnx", "README.md"}
    assert set(select_files(["model_index.json", *files], "x")) == {"model_index.json", *files} - left_out


def test_a_repository_without_a_base_is_refused():
    with pytest.raises(
        BadFile, match="hub:owner/name holds neither a diffusers folder nor a file of weights at its top level"
    ):
        select_files(["README.md", "sub/ink.safetensors"], "hub:owner/name")


def test_a_part_on_the_hub_is_found_beside_a_library(hub, tmp_path, monkeypatch):
    offer(hub, {"soft.safetensors": b"weights"})
    monkeypatch.setenv("HF_ENDPOINT", hub.root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = velatura.Library(tmp_path).part_path("hub:owner/name", "vae")
    assert path.read_bytes() == b"weights"
