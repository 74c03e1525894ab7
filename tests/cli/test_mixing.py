import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import velatura
from velatura.cli.bake import bake
from velatura.cli.merge import extract, merge
from velatura.errors import AlreadyExists, BadRecipe, UnknownName
from velatura.merging.checkpoints.report import MergeReport
from velatura.merging.lora.extract import ExtractReport
from velatura.tensors import open_tensors


def run(verb, *words: object) -> str:
    """What a verb with these words prints."""
    app = typer.Typer()
    app.command()(verb)
    found = CliRunner().invoke(app, [str(each) for each in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


@torch.no_grad()
def prediction(base: velatura.Base) -> torch.Tensor:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    return base.predict(latents, torch.tensor(400), base.text.encode(["an owl on a branch"]))


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(scope="module")
def anime() -> velatura.Base:
    base, generator = velatura.tiny(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in base.unet.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.01)
    return base


@pytest.fixture
def models(tiny, anime, tmp_path, monkeypatch) -> Path:
    """The working folder, with a model in it and another in a library."""
    monkeypatch.chdir(tmp_path)
    velatura.save(tiny, "plain.safetensors")
    velatura.save(anime, "shelf/checkpoints/anime.safetensors")
    return tmp_path


def test_merge_finds_models_by_path_and_by_name(tiny, anime, models):
    printed = run(
        merge, "plain.safetensors", "anime", "--library", "shelf", "--strength", 0.35, "--out", "m.safetensors"
    )
    assert printed.startswith("0.65(plain) + 0.35(anime): ")
    assert "plain 65.0% (cosine 1.000),  anime 35.0%" in printed
    assert printed.endswith("m.safetensors\n")
    wanted, _ = velatura.merge(tiny, anime, 0.35)
    assert torch.equal(prediction(velatura.open_base("m.safetensors")), prediction(wanted))
    with pytest.raises(AlreadyExists):
        run(merge, "plain.safetensors", "anime", "--library", "shelf", "--out", "m.safetensors")
    assert (models / "m.safetensors").exists()


@pytest.mark.usefixtures("models")
def test_merge_takes_all_that_shapes_the_file():
    words = ["--mode", "dare", "--share", 0.3, "--seed", 4, "--blocks", "IN=0.2,M00=1", "--dtype", "float16"]
    told = ["--discard", "^first_stage", "--metadata", '{"author": "me"}', "--json"]
    printed = run(merge, "tiny", "anime", "--library", "shelf", *words, *told, "--out", "m.safetensors")
    report = MergeReport.model_validate_json(printed)
    assert (report.mix.mode, report.mix.share, report.mix.seed) == ("dare", 0.3, 4)
    found = open_tensors("m.safetensors")
    assert {each.dtype for each in found.tensors.values()} == {torch.float16}
    assert not any(key.startswith("first_stage") for key in found.tensors)
    assert found.metadata["author"] == "me"
    recipe = json.loads(found.metadata["sd_merge_recipe"])
    assert (recipe["interp_method"], recipe["blocks"]) == ("DARE", "IN=0.2,M00=1")


@pytest.mark.usefixtures("models")
def test_merge_of_one_model_alone_writes_it_otherwise():
    run(merge, "plain.safetensors", "--dtype", "bfloat16", "--no-recipe", "--no-metadata", "--out", "m.safetensors")
    found = open_tensors("m.safetensors")
    assert {each.dtype for each in found.tensors.values()} == {torch.bfloat16}
    assert not any(key.startswith(("sd_merge", "modelspec")) for key in found.metadata)
    assert velatura.open_base("m.safetensors").family.name == "tiny"


@pytest.mark.usefixtures("models")
def test_extract_writes_a_lora_and_tells_how_near_it_comes(tiny, anime):
    printed = run(extract, "tiny", "anime", "--library", "shelf", "--rank", 64, "--json", "--out", "l.safetensors")
    report = ExtractReport.model_validate_json(printed)
    assert 0 < report.whole.missed < 0.9
    with velatura.attach(tiny, velatura.open_overlay("l.safetensors")):
        found = prediction(tiny)
    assert off(found, prediction(anime)) < 0.9 * off(prediction(tiny), prediction(anime))
    assert "minus tiny as a LoRA" in run(
        extract, "tiny", "anime", "--library", "shelf", "--tolerance", 0.9, "--conv-rank", 0, "--out", "m.safetensors"
    )


@pytest.mark.usefixtures("models")
def test_loras_become_one(tiny, lora):
    laid = [(lora(seed=1), 0.8), (lora(seed=2), velatura.Strength(text=0.1, unet=-0.5))]
    for number, (overlay, _) in enumerate(laid):
        velatura.save(overlay, f"{number}.safetensors")
    printed = run(merge, "0.safetensors:0.8", "1.safetensors:0.1:-0.5", "--out", "both.safetensors")
    assert printed.startswith("both.safetensors: lora")
    assert ", exact" in printed
    with velatura.attach(tiny, *laid[0]), velatura.attach(tiny, *laid[1]):
        wanted = prediction(tiny)
    with velatura.attach(tiny, velatura.open_overlay("both.safetensors")):
        assert off(prediction(tiny), wanted) < 1e-3  # in half precision
    run(merge, "both.safetensors", "--rank", 2, "--out", "narrow.safetensors")
    narrow = velatura.open_overlay("narrow.safetensors")
    told = json.loads(run(merge, "both.safetensors", "--out", "both.safetensors", "--overwrite", "--json"))
    assert (told["kind"], told["name"]) == ("lora", "both")
    assert {each.rank for each in narrow.layers.values()} == {2}
    assert {each.dtype for each in narrow.state_dict().values()} == {torch.float16}


@pytest.mark.usefixtures("models")
def test_bake_takes_a_lora_at_two_strengths(tiny, lora):
    overlay = lora()
    velatura.save(overlay, "ink.safetensors")
    printed = run(bake, "tiny", "ink.safetensors:0.2:0.7", "--steps", 1, "--out", "baked.safetensors")
    assert "added at 0.7 in the UNet, 0.2 in the text" in printed
    with velatura.attach(tiny, overlay, velatura.Strength(text=0.2, unet=0.7)):
        wanted = prediction(tiny)
    assert off(prediction(velatura.open_base("baked.safetensors")), wanted) < 1e-3


@pytest.mark.usefixtures("models")
def test_mistakes_are_told_in_one_line(lora, hyper):
    velatura.save(lora(), "ink.safetensors")
    to = ("--out", "m.safetensors")
    for mixture in (("tiny", "ink.safetensors"), ("ink.safetensors:0.5", "plain.safetensors:0.5")):
        with pytest.raises(BadRecipe, match=r"ink\S* is a LoRA and (tiny|plain\S*) is not.* use velatura bake"):
            run(merge, *mixture, *to)
    velatura.save(hyper(), "inca.pt")
    for overlays in (("inca.pt:0.5", "inca.pt"), ("ink.safetensors", "inca.pt")):
        with pytest.raises(BadRecipe, match=r"inca\.pt\S* is of kind hypernet: merge models, or LoRAs"):
            run(merge, *overlays, *to)
    with pytest.raises(BadRecipe, match=r"plain\.safetensors:0\.2: models take no strengths .* --strength"):
        run(merge, "tiny", "plain.safetensors:0.2", *to)
    with pytest.raises(BadRecipe, match="add-difference takes three models, and 2 are given"):
        run(merge, "tiny", "plain.safetensors", "--mode", "add-difference", *to)
    with pytest.raises(UnknownName, match="nobody"):
        run(merge, "tiny", "nobody", *to)
    with pytest.raises(BadRecipe, match="4 models"):
        run(merge, *["plain.safetensors"] * 4, *to)
    with pytest.raises(BadRecipe, match="is not JSON"):
        run(merge, "tiny", "plain.safetensors", "--metadata", "author=me", *to)
    with pytest.raises(UnknownName, match=r"\.ckpt"):
        run(merge, "tiny", "plain.safetensors", "--out", "m.ckpt")
    of_models = ("--strength=0", "--seed=1", "--discard=a", "--config=A", '--metadata={"a": 1}', "--no-recipe")
    for words in (*(("ink.safetensors", each) for each in of_models), ("plain.safetensors", "tiny", "--rank", 4)):
        with pytest.raises(AssertionError, match="Usage"):
            run(merge, *words, *to)
    assert not Path("m.safetensors").exists()
