"""Lists: samplers, schedulers, upscalers, files and flags, as A1111 names them."""

from __future__ import annotations

import velatura

SAMPLERS = [  # of A1111, whose lists have no scheduler in the names since 1.9
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler"),
    *("LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "PLMS", "UniPC", "LCM"),
]
SCHEDULERS = [
    "automatic",
    "uniform",
    "karras",
    "exponential",
    "polyexponential",
    "sgm_uniform",
    "kl_optimal",
    "align_your_steps",
    "simple",
    "normal",
    "ddim",
    "beta",
]


def test_samplers(a1111):
    samplers = {sampler["name"]: sampler for sampler in a1111.get("samplers")}
    assert set(samplers) == set(SAMPLERS)
    assert {"k_euler_a", "k_euler_ancestral"} <= set(samplers["Euler a"]["aliases"])
    assert samplers["DPM2 a"]["options"] == {
        "uses_ensd": "True",
        "second_order": "True",
        "discard_next_to_last_sigma": "True",
        "scheduler": "karras",
    }


def test_every_alias_of_a_sampler_is_understood(a1111):
    from velatura.server.a1111.recipes import split_sampler

    for sampler in a1111.get("samplers"):
        for alias in sampler["aliases"]:
            assert split_sampler(alias)[0] == sampler["name"]


def test_schedulers(a1111):
    schedulers = a1111.get("schedulers")
    assert [scheduler["name"] for scheduler in schedulers] == SCHEDULERS
    assert schedulers[2] == {
        "name": "karras",
        "label": "Karras",
        "aliases": [],
        "default_rho": 7.0,
        "need_inner_model": False,
    }


def test_upscalers_and_what_is_not_there(a1111):
    assert [upscaler["name"] for upscaler in a1111.get("upscalers")] == ["None", "Lanczos", "Nearest"]
    assert [mode["name"] for mode in a1111.get("latent-upscale-modes")] == [
        "Latent",
        "Latent (antialiased)",
        "Latent (bicubic)",
        "Latent (bicubic antialiased)",
        "Latent (nearest)",
        "Latent (nearest-exact)",
    ]
    assert [a1111.get(route) for route in ("face-restorers", "realesrgan-models", "extensions")] == [[], [], []]


def test_bases(a1111):
    model = a1111.get("sd-models")[0]
    assert model.keys() == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert (model["title"], model["model_name"]) == ("tiny [4e79e44e20]", "tiny")
    assert a1111.get("sd-vae") == []


def test_loras_with_their_metadata_and_without_the_servers_folders(a1111, models):
    lora = next(lora for lora in a1111.get("loras") if lora["name"] == "ink")
    assert (lora["alias"], lora["path"]) == ("ink", "ink.safetensors")
    assert lora["metadata"]
    assert str(models) not in a1111.client.get("/sdapi/v1/loras").text


def test_embeddings_of_other_families_are_skipped(a1111, models, tiny):
    fitting = velatura.Embedding.for_base(tiny, name="fits", vectors=3)
    velatura.save(fitting, models / "fits.pt")
    other = velatura.Embedding.from_vectors(
        fitting.vectors[0].detach().new_zeros(2, 768) + 0.1, card=fitting.card.replace(name="other", family="SD1")
    )
    velatura.save(other, models / "other.safetensors")
    a1111.post("refresh-embeddings")
    embeddings = a1111.get("embeddings")
    assert embeddings["loaded"]["fits"] == {
        "step": None,
        "sd_checkpoint": "4e79e44e20",
        "sd_checkpoint_name": "tiny",
        "shape": 96,
        "vectors": 3,
    }
    assert (embeddings["skipped"]["other"]["shape"], embeddings["skipped"]["other"]["vectors"]) == (768, 2)


def test_flags_and_memory_tell_no_folder_and_no_secret(a1111, models):
    flags = a1111.get("cmd-flags")
    assert flags["api"] is True
    assert not any(str(models) in str(value) for value in flags.values())
    memory = a1111.get("memory")
    assert memory["ram"].keys() == {"free", "used", "total"}
    assert "cuda" in memory


def test_pages_of_extra_networks(a1111, models):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(models / "ink.png")
    a1111.post("refresh-loras")
    client = a1111.client
    assert client.get("/sd_extra_networks/thumb", params={"filename": "ink.png"}).headers["content-type"] == "image/png"
    for name in ("../ink.png", "/etc/passwd", "ink.safetensors", ""):
        assert client.get("/sd_extra_networks/thumb", params={"filename": name}).status_code == 404
    metadata = client.get("/sd_extra_networks/metadata", params={"page": "lora", "item": "ink"}).json()
    assert metadata["metadata"].startswith("{")
    assert client.get("/sd_extra_networks/metadata", params={"page": "lora", "item": "none"}).json() == {}
    card = client.get("/sd_extra_networks/get-single-card", params={"page": "lora", "name": "ink"}).json()
    assert "ink" in card["html"]
    (models / "ink.png").unlink()
    client.post("/api/library/refresh")


def test_files_are_pictures_of_ours_only(a1111, state):
    a1111.paint()
    [picture] = state.pictures.list(limit=1)
    assert a1111.client.get(f"/file={picture.file}").headers["content-type"] == "image/png"
    outside = ["/etc/passwd", "../velatura.sqlite", "..%2fvelatura.sqlite", "", ".", "%00"]
    assert {a1111.client.get(f"/file={name}").status_code for name in outside} == {404}
