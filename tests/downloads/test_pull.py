"""What Civitai and the hub offer is fetched as they describe it, checked, and put where it target."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch

from tests.downloads.server import status
from velatura.downloads import civitai
from velatura.downloads.destination import kind_folder
from velatura.downloads.partial_file import PartialFile, PartialFileRecord
from velatura.downloads.services import Service
from velatura.errors import AlreadyExists, BadFile, DownloadFailed, UnknownName, VelaturaWarning
from velatura.library import Library
from velatura.tensors import write_safetensors

SHA = "a" * 40


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def git_hash(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def on_hub(server, files, large=(), repo="owner/name"):
    """Offer a repository: small files with git's hash, large ones with SHA-256."""
    siblings = []
    for path, body in files.items():
        server.offers(f"/{repo}/resolve/{SHA}/{path}", body)
        fields = {"rfilename": path, "size": len(body), "blobId": git_hash(body)}
        lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        siblings.append({**fields, "blobId": "0" * 40, "lfs": lfs} if path in large else fields)
    server.says(f"/api/models/{repo}/revision/main", {"sha": SHA, "siblings": siblings})


def test_the_newest_version_of_civitai_comes_with_its_metadata(server, fetch, desk, lora):
    server.has_on_civitai(lora)
    done = fetch("civitai:10")
    assert (done.path.name, done.kind, done.made_for, done.trigger_words) == (
        *("ink.safetensors", "lora"),
        *("SD 1.5", ("ink style",)),
    )
    assert names(desk) == ["ink.civitai.info", "ink.safetensors"]
    assert done.sha256 == hashlib.sha256(lora).hexdigest()
    assert json.loads((desk / "ink.civitai.info").read_text())["id"] == 20
    assert server.paths() == ["/api/v1/models/10", "/api/v1/model-versions/20", "/api/download/models/20"]


def test_a_requested_version_of_civitai_is_downloaded(server, fetch, desk, lora):
    server.has_on_civitai(lora, version=21)
    fetch("civitai:10@21")
    assert server.paths() == ["/api/v1/model-versions/21", "/api/download/models/21"]
    assert names(desk) == ["ink.civitai.info", "ink.safetensors"]


def test_a_version_of_another_model_is_refused(server, fetch, lora):
    server.has_on_civitai(lora)
    with pytest.raises(DownloadFailed, match="version 20 belongs to civitai:10, not to civitai:11"):
        fetch("civitai:11@20")


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server, fetch, desk, lora):
    server.has_on_civitai(lora, hashes={"SHA256": "f" * 64})
    with pytest.raises(DownloadFailed, match=r"has the hash .* but its service states ffffffffffffffff\.\.\."):
        fetch("civitai:10")
    assert names(desk) == []


def test_the_short_hash_is_checked_where_there_is_no_other(server, fetch, desk, lora):
    server.has_on_civitai(lora, hashes={"AutoV2": hashlib.sha256(lora).hexdigest()[:10].upper()})
    fetch("civitai:10")
    server.has_on_civitai(lora, name="other.safetensors", hashes={"AutoV2": "0123456789"})
    with pytest.raises(DownloadFailed, match="but its service states"):
        fetch("civitai:10")
    assert names(desk) == ["ink.civitai.info", "ink.safetensors"]


def test_a_partial_file_with_a_wrong_hash_is_downloaded_again(server, fetch, desk, lora):
    server.has_on_civitai(lora)
    part = PartialFile(desk / "ink.safetensors")
    part.begin(PartialFileRecord(f"{server.root}/api/download/models/20", '"one"', len(lora)))
    part.path.write_bytes(b"x" * 4000)
    fetch("civitai:10")
    assert (desk / "ink.safetensors").read_bytes() == lora
    assert server.ranges()[-2:] == ["bytes=4000-", None]


def test_an_existing_file_is_not_downloaded_again(server, fetch, desk, lora):
    server.has_on_civitai(lora)
    assert not fetch("civitai:10").was_there
    server.asked.clear()
    again = fetch("civitai:10")
    assert (again.was_there, again.kind, again.path) == (True, "lora", desk / "ink.safetensors")
    assert "/api/download/models/20" not in server.paths()


def test_an_existing_file_is_found_in_its_subfolder(server, fetch, desk, lora):
    (desk / "models" / "Lora").mkdir(parents=True)
    server.has_on_civitai(lora)
    fetch("civitai:10")
    assert fetch("civitai:10").was_there
    (desk / "models" / "Lora" / "ink.safetensors").write_bytes(b"mine")
    with pytest.raises(AlreadyExists):
        fetch("civitai:10")


@pytest.mark.parametrize("name", ["../../up.safetensors", "/tmp/up.safetensors", "..\\up.safetensors"])
def test_a_name_does_not_leave_the_folder(server, fetch, tmp_path, lora, name):
    server.has_on_civitai(lora, name=name)
    fetch("civitai:10")
    assert names(tmp_path) == ["desk/up.civitai.info", "desk/up.safetensors"]


def test_other_files_are_not_downloaded(server, fetch, desk):
    server.has_on_civitai(b"PK", name="pictures.zip", type="Training Data")
    with pytest.raises(DownloadFailed, match=r"holds pictures.zip, but no file that ends in"):
        fetch("civitai:10")
    assert names(desk) == []


def test_the_primary_file_is_preferred_and_then_safetensors(server, fetch, desk, lora):
    others = [("a.pt", False), ("b.safetensors", False), ("c.zip", True)]
    server.has_on_civitai(lora)
    answer = {"id": 20, "modelId": 10, "files": []}
    for name, primary in others:
        url = server.offers(f"/files/{name}", lora)
        answer["files"].append({"name": name, "primary": primary, "downloadUrl": url})
    server.says("/api/v1/model-versions/20", answer)
    assert fetch("civitai:10@20").path.name == "b.safetensors"
    answer["files"][0]["primary"] = True
    server.says("/api/v1/model-versions/20", answer)
    with pytest.raises(BadFile):  # the main file, though it is not what it is called
        fetch("civitai:10@20")


def test_a_file_that_civitai_found_dangerous_is_refused(server, fetch, desk, lora):
    server.has_on_civitai(lora, pickleScanResult="Danger")
    with pytest.raises(DownloadFailed, match="found something dangerous"):
        fetch("civitai:10")


def test_a_version_for_use_on_civitai_only_is_refused(server, fetch):
    server.says("/api/v1/model-versions/20", {"id": 20, "modelId": 10, "usageControl": "Generation", "files": []})
    with pytest.raises(DownloadFailed, match="can only be used on Civitai"):
        fetch("civitai:10@20")


def test_a_model_without_versions_is_refused(server, fetch):
    server.says("/api/v1/models/10", {"id": 10, "modelVersions": []})
    with pytest.raises(DownloadFailed, match="has no version to download"):
        fetch("civitai:10")


@pytest.mark.parametrize(
    "answer",
    [{}, {"id": "x"}, {"id": 20, "files": [{"name": 7}]}, {"id": 20, "files": [{"name": "a.pt", "sizeKB": -1}]}],
)
def test_a_wrong_answer_of_civitai_is_refused(server, fetch, answer):
    server.says("/api/v1/model-versions/20", answer)
    with pytest.raises(DownloadFailed, match=r"Civitai's answer has a missing or wrong field \w+"):
        fetch("civitai:10@20")


def test_the_limit_is_checked_before_the_file_is_requested(server, fetch, lora):
    server.has_on_civitai(lora, sizeKB=9_000_000)
    with pytest.raises(DownloadFailed, match=r"has 9.22 GB, over the limit of 8.00 GB: allow more with --limit"):
        fetch("civitai:10")
    assert "/api/download/models/20" not in server.paths()


def test_a_download_for_members_only_names_the_token(server, fetch, lora):
    server.has_on_civitai(lora)
    server.replies["/api/download/models/20"] = status(401)
    with pytest.raises(DownloadFailed, match="set CIVITAI_TOKEN"):
        fetch("civitai:10")


def test_the_name_may_come_from_content_disposition(server, fetch, desk, lora):
    server.offers(
        "/download", lora, headers={"Content_Disposition": "attachment; filename*=UTF-8''%E5%A2%A8.safetensors"}
    )
    fetch(server.root + "/download?id=7")
    assert names(desk) == ["墨.safetensors"]


def test_the_same_address_twice_finds_the_file_there(server, fetch, desk, lora):
    address = server.offers("/ink.safetensors", lora)
    first, second = fetch(address), fetch(address)
    assert (first.was_there, second.was_there) == (False, True)
    assert second.path == first.path
    assert names(desk) == ["ink.safetensors"]


@pytest.mark.parametrize("other", [b"short", None])
def test_another_file_at_the_same_address_is_not_taken_for_the_first(server, fetch, desk, lora, other):
    fetch(server.offers("/ink.safetensors", lora))
    changed = lora[:-1] + bytes([lora[-1] ^ 1]) if other is None else lora[:-4] + other
    with pytest.raises(AlreadyExists, match="is another file"):
        fetch(server.offers("/ink.safetensors", changed))
    assert (desk / "ink.safetensors").read_bytes() == lora
    assert names(desk) == ["ink.safetensors"]


def test_a_url_without_a_model_name_is_refused(server, fetch, desk, lora):
    server.offers("/download", lora)
    with pytest.raises(DownloadFailed, match="'download' is not a model file"):
        fetch(server.root + "/download")


@pytest.mark.parametrize(
    "where",
    [
        (".", "models/Lora", "models/Lora"),
        (".", "models/Stable-diffusion", "models/Lora"),
        (".", "models/loras", "models/loras"),
        (".", "models/checkpoints", "models/loras"),
        ("models", "models/loras", "models/loras"),
        ("models", "models/Lora", "models/Lora"),
        (".", "pictures", "."),
        ("models/Lora", "models/Lora", "models/Lora"),
    ],
)
def test_a_file_goes_to_the_subfolder_for_its_kind(server, fetch, desk, lora, where):
    folder, created_folder, target = where
    (desk / created_folder).mkdir(parents=True)
    done = fetch(server.offers("/ink.safetensors", lora), to=desk / folder)
    assert done.path == desk / folder / (desk / target).relative_to(desk / folder) / "ink.safetensors"


def test_the_content_decides_and_not_the_name(server, fetch, desk, hypernet):
    (desk / "models" / "Lora").mkdir(parents=True)
    done = fetch(server.offers("/lora.pt", hypernet))
    assert (done.kind, done.path) == ("hypernet", desk / "models" / "hypernetworks" / "lora.pt")


def test_a_composition_is_downloaded(server, fetch, desk):
    assert fetch(server.offers("/both.hns", b'[("inca", 0.5), "neon"]')).kind == "hypernet"
    with pytest.raises(BadFile):
        fetch(server.offers("/evil.hns", b"__import__('os').system('x')"))
    assert names(desk) == ["both.hns"]


def test_embeddings_are_beside_models_in_a1111_and_inside_in_comfyui(tmp_path):
    a1111, comfyui = tmp_path / "a", tmp_path / "c"
    (a1111 / "models" / "Lora").mkdir(parents=True)
    (comfyui / "models" / "loras").mkdir(parents=True)
    assert kind_folder(a1111, "embedding") == a1111 / "embeddings"
    assert kind_folder(a1111 / "models", "embedding") == a1111 / "embeddings"
    assert kind_folder(comfyui, "embedding") == comfyui / "models" / "embeddings"
    assert kind_folder(a1111, "unknown") == a1111


def test_one_file_of_the_hub_is_downloaded(server, fetch, desk, lora):
    on_hub(server, {"sub/ink.safetensors": lora, "README.md": b"#"}, large={"sub/ink.safetensors"})
    done = fetch("hub:owner/name/sub/ink.safetensors")
    assert (names(desk), done.kind) == (["ink.safetensors"], "lora")


def test_the_only_checkpoint_of_a_repository_is_downloaded(server, fetch, desk, lora):
    on_hub(server, {"ink.safetensors": lora, "README.md": b"#"})
    fetch("hub:owner/name")
    assert names(desk) == ["ink.safetensors"]


def test_among_several_checkpoints_one_must_be_named(server, fetch, lora):
    on_hub(server, {"a.safetensors": lora, "b.safetensors": lora})
    with pytest.raises(
        BadFile, match=r"several files \(a.safetensors, b.safetensors\): name one, as in hub:owner/name/a"
    ):
        fetch("hub:owner/name")


def test_an_unknown_file_of_the_hub_suggests_the_nearest(server, fetch, lora):
    on_hub(server, {"ink.safetensors": lora})
    with pytest.raises(UnknownName, match=r"did you mean 'ink.safetensors'"):
        fetch("hub:owner/name/ing.safetensors")


@pytest.mark.parametrize("large", [set(), {"ink.safetensors"}])
def test_the_hubs_hashes_are_checked(server, fetch, desk, lora, large):
    on_hub(server, {"ink.safetensors": lora}, large=large)
    server.offers(f"/owner/name/resolve/{SHA}/ink.safetensors", lora[:-1] + b"x")
    with pytest.raises(DownloadFailed, match="but its service states"):
        fetch("hub:owner/name")
    assert names(desk) == []


def test_a_wrong_answer_of_the_hub_is_refused(server, fetch):
    server.says("/api/models/owner/name/revision/main", {"sha": "../../x", "siblings": []})
    with pytest.raises(DownloadFailed, match="the hub's answer has a missing or wrong field sha"):
        fetch("hub:owner/name")


@pytest.fixture
def diffusers(lora):
    """The files of a folder, some of which nobody needs."""
    return {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "unet/config.json": b'{"cross_attention_dim": 768, "in_channels": 4}',
        "unet/diffusion_pytorch_model.safetensors": lora,
        "unet/diffusion_pytorch_model.fp16.safetensors": lora,
        "unet/diffusion_pytorch_model.bin": lora,
        "tokenizer/vocab.json": b"{}",
        "safety_checker/model.safetensors": lora,
        "README.md": b"#",
    }


NEEDED_FILES = [
    "model_index.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def test_only_the_needed_files_of_a_diffusers_folder_are_downloaded(server, fetch, desk, diffusers, lora):
    on_hub(server, diffusers, large={name for name, body in diffusers.items() if body is lora})
    progress = []
    done = fetch("hub:owner/name", on_bytes=lambda done, total: progress.append((done, total)))
    assert names(desk) == [f"name/{path}" for path in NEEDED_FILES]
    assert (done.path, done.kind, done.sha256) == (desk / "name", "checkpoint", None)
    total = sum(len(diffusers[path]) for path in NEEDED_FILES)
    assert progress[-1] == (total, total)
    assert done.file_bytes == total


def test_a_folder_is_resumed_and_gets_its_name_when_it_is_complete(server, fetch, desk, diffusers):
    on_hub(server, diffusers)
    broken = f"/owner/name/resolve/{SHA}/unet/diffusion_pytorch_model.safetensors"
    good = server.replies[broken]
    server.replies[broken] = status(404)
    with pytest.raises(DownloadFailed):
        fetch("hub:owner/name")
    assert all(path.startswith("name.part/") for path in names(desk))
    server.replies[broken] = good
    server.asked.clear()
    fetch("hub:owner/name")
    assert names(desk) == [f"name/{path}" for path in NEEDED_FILES]
    assert server.paths()[1:] == [broken]
    server.asked.clear()
    assert fetch("hub:owner/name").was_there
    assert len(server.asked) == 1


def test_weights_of_a_folder_are_checked(server, fetch, desk, diffusers):
    on_hub(server, {**diffusers, "unet/diffusion_pytorch_model.safetensors": b"nothing"})
    with pytest.raises(BadFile):
        fetch("hub:owner/name")
    assert "name/model_index.json" not in names(desk)


def test_the_limit_holds_for_a_folder_as_a_whole(server, fetch, desk, diffusers):
    on_hub(server, diffusers)
    with pytest.raises(DownloadFailed, match="in 4 files, over the limit"):
        fetch("hub:owner/name", limit=1000)
    assert names(desk) == []


def test_another_existing_folder_is_not_replaced(server, fetch, desk, diffusers):
    on_hub(server, diffusers)
    (desk / "name").mkdir()
    with pytest.raises(AlreadyExists):
        fetch("hub:owner/name")


def test_a_repository_of_one_file_of_weights_needs_no_name_of_it(server, fetch, desk, hypernet):
    on_hub(server, {"inca.pt": hypernet, "inca.png": b"", "README.md": b"#"})
    assert fetch("hub:owner/name").kind == "hypernet"


def test_weights_of_an_unknown_kind_are_kept_with_a_warning(server, fetch, desk, tmp_path):
    write_safetensors(tmp_path / "odd.safetensors", {"odd.layer.weight": torch.zeros(2, 2)})
    url = server.offers("/odd.safetensors", (tmp_path / "odd.safetensors").read_bytes())
    with pytest.warns(VelaturaWarning, match="holds weights of an unknown kind"):
        done = fetch(url)
    assert (done.kind, names(desk)) == ("unknown", ["odd.safetensors"])


@pytest.mark.parametrize(
    ("url", "message"), [("ftp://example.org/a", "not a web address"), ("http://[::1", "not a web address")]
)
def test_a_download_url_of_civitai_must_be_a_web_address(server, fetch, lora, url, message):
    server.has_on_civitai(lora, downloadUrl=url)
    with pytest.raises(DownloadFailed, match=message):
        fetch("civitai:10")


def test_a_download_url_of_civitai_must_not_lead_from_https_to_http(monkeypatch):
    answer = {"id": 20, "files": [{"name": "a.pt", "downloadUrl": "http://example.org/a.pt"}]}
    web = SimpleNamespace(json=lambda _: answer)
    with pytest.raises(DownloadFailed, match="from https to http"):
        civitai.find(web, Service("Civitai", "https://civitai.com"), None, 20)


def test_a_library_finds_a_downloaded_file_and_its_metadata(server, fetch, desk, lora):
    (desk / "models" / "Lora").mkdir(parents=True)
    server.has_on_civitai(lora)
    fetch("civitai:10")
    (entry,) = Library(desk).entries()
    assert (entry.name, entry.kind, entry.trigger_words) == ("ink", "lora", ("ink style",))


def test_missing_fields_of_civitai_are_accepted(server, fetch, desk, lora):
    missing = dict.fromkeys(["sizeKB", "primary", "hashes", "downloadUrl", "pickleScanResult", "virusScanResult"])
    server.has_on_civitai(lora, **missing)
    assert fetch("civitai:10").kind == "lora"
