import json

import pytest
import torch

import velatura
from velatura.errors import BadFile, BadRecipe, NoEffect, UnknownName, VelaturaWarning, WrongBase
from velatura.formats.checkpoints import write_single_file
from velatura.merging.checkpoints.merge import merge
from velatura.merging.checkpoints.options import Saving
from velatura.merging.checkpoints.report import MergeReport
from velatura.merging.checkpoints.retention import measure_retention
from velatura.tensors import open_tensors, write_safetensors


def changed(seed: int, parts: tuple[str, ...] = ("unet", "text", "vae")) -> velatura.Base:
    """A tiny base with other weights in some of its parts."""
    base, generator = velatura.tiny(), torch.Generator().manual_seed(seed)
    models = {"unet": base.unet, "text": base.text.model, "vae": base.vae}
    with torch.no_grad():
        for part in parts:
            for weight in models[part].parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.01)
    base.name = f"other{seed}"
    return base


def weights(base: velatura.Base) -> dict[str, torch.Tensor]:
    return dict(write_single_file.checkpoint_contents(base).tensors)


@pytest.fixture(scope="module")
def one() -> velatura.Base:
    return changed(1)


@pytest.fixture(scope="module")
def two() -> velatura.Base:
    return changed(2)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny, one, two):
    folder = tmp_path_factory.mktemp("models")
    for name, base in (("tiny", tiny), ("one", one), ("two", two)):
        velatura.save(base, folder / f"{name}.safetensors")
    return folder


def test_a_weighted_sum_of_bases_is_a_base_that_works(tiny, one):
    merged, report = merge(tiny, one, 0.35)
    ours, theirs, found = weights(tiny), weights(one), weights(merged)
    assert found.keys() == ours.keys()
    assert all(torch.allclose(found[key], 0.65 * ours[key] + 0.35 * theirs[key], atol=1e-7) for key in found)
    assert merged.name == "0.65(tiny) + 0.35(other1)"
    assert (merged.family, merged.dtype, merged.hash) == (tiny.family, tiny.dtype, "")
    prediction = merged.predict(torch.zeros(1, 4, 8, 8), torch.tensor(9), merged.text.encode(["a red fox"]))
    assert prediction.isfinite().all()
    assert (report.file, report.models, report.tensors) == ("", ("tiny", "other1"), len(ours))


def test_the_parents_stay_as_they_are(tiny, one):
    before = {key: tensor.clone() for key, tensor in weights(tiny).items()}
    merged, _ = merge(tiny, one, 0.5)
    with torch.no_grad():
        for weight in merged.unet.parameters():
            weight.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(tiny).items())


def test_a_difference_is_added(tiny, one, two):
    ours, theirs, less = weights(tiny), weights(one), weights(two)
    found = weights(merge(tiny, one, 0.5, minus=two)[0])
    assert all(torch.allclose(found[key], ours[key] + 0.5 * (theirs[key] - less[key]), atol=1e-6) for key in found)


def test_files_bases_and_folders_merge_alike(files, tiny, one, tmp_path):
    velatura.save(one, tmp_path / "folder")
    wanted = weights(merge(tiny, one, 0.4)[0])
    opened, _ = merge(files / "tiny.safetensors", files / "one.safetensors", 0.4)
    found = [
        weights(opened),
        weights(merge(tiny, tmp_path / "folder", 0.4)[0]),
        weights(merge(str(files / "tiny.safetensors"), one, 0.4)[0]),
    ]
    path, _ = merge(files / "tiny.safetensors", tmp_path / "folder", 0.4, out=tmp_path / "out.safetensors")
    assert path == tmp_path / "out.safetensors"
    found.append(weights(velatura.open_base(path)))
    assert all(torch.equal(tensors[key], wanted[key]) for tensors in found for key in wanted)


def test_block_strengths_reach_their_blocks(tiny, one):
    found = weights(merge(tiny, one, 0.5, blocks={"IN": 0.0, "M00": 1.0})[0])
    ours, theirs = weights(tiny), weights(one)
    unet = "model.diffusion_model."
    for key, wanted in (
        (f"{unet}input_blocks.1.0.in_layers.2.weight", ours),
        (f"{unet}middle_block.1.proj_in.weight", theirs),
    ):
        assert torch.equal(found[key], wanted[key])
    key = "first_stage_model.quant_conv.weight"
    assert torch.allclose(found[key], (ours[key] + theirs[key]) / 2)


def test_a_merge_is_written_in_half_precision_all_of_it(files, tmp_path):
    merge(
        files / "tiny.safetensors",
        files / "one.safetensors",
        out=tmp_path / "out.safetensors",
        saving=Saving(dtype="bfloat16"),
    )
    assert {tensor.dtype for tensor in open_tensors(tmp_path / "out.safetensors").tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("dtype", "written"), [("int64", "int64"), ("float16", "float16"), ("float8_e4m3fn", "int64")])
def test_broken_position_ids_of_a_parent_are_numbered_again(files, tmp_path, dtype, written):
    """CLIP has 77 positions, numbered 0 to 76."""
    key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    tensors = dict(open_tensors(files / "tiny.safetensors").tensors)
    broken = torch.arange(77).clamp(max=75)[None].float().to(getattr(torch, dtype))
    write_safetensors(tmp_path / "broken.safetensors", {**tensors, key: broken})
    with pytest.warns(VelaturaWarning, match=r"broken has wrong numbers in .*position_ids"):
        merge(tmp_path / "broken.safetensors", files / "one.safetensors", out=tmp_path / "out.safetensors")
    found = open_tensors(tmp_path / "out.safetensors").tensors[key]
    assert found.dtype == getattr(torch, written)
    assert found.tolist() == [list(range(77))]


def test_an_autoencoder_takes_the_place_of_what_was_merged(files, one, two, tmp_path):
    velatura.save(two, tmp_path / "folder")
    for vae in (files / "two.safetensors", tmp_path / "folder" / "vae"):
        _, report = merge(
            files / "tiny.safetensors",
            files / "one.safetensors",
            out=tmp_path / "out.safetensors",
            saving=Saving(vae=vae),
        )
        found, wanted = open_tensors(tmp_path / "out.safetensors").tensors, weights(two)
        keys = [key for key in found if key.startswith("first_stage_model.")]
        assert report.vae == len(keys)
        assert all(torch.equal(found[key], wanted[key]) for key in keys)


def test_an_autoencoder_that_lacks_a_tensor_is_refused(files, two, tmp_path):
    vae = {key: tensor for key, tensor in weights(two).items() if key.startswith("first_stage_model.")}
    del vae["first_stage_model.encoder.conv_in.bias"]
    write_safetensors(tmp_path / "vae.safetensors", vae)
    with pytest.raises(WrongBase, match=r"\(1 tensor differs in name or shape: first_stage.*conv_in\.bias"):
        merge(
            files / "tiny.safetensors", saving=Saving(vae=tmp_path / "vae.safetensors"), out=tmp_path / "x.safetensors"
        )


def test_an_autoencoder_that_fits_nothing_is_refused(files, tmp_path):
    write_safetensors(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": torch.zeros(2, 2)})
    with pytest.raises(WrongBase, match="does not hold a VAE that fits"):
        merge(
            files / "tiny.safetensors", saving=Saving(vae=tmp_path / "vae.safetensors"), out=tmp_path / "x.safetensors"
        )


def test_discarding_nothing_is_warned_of_and_no_expression_refused(files, tmp_path):
    with pytest.warns(VelaturaWarning, match="nothing is discarded"):
        merge(files / "tiny.safetensors", saving=Saving(discard="^loss"), out=tmp_path / "out.safetensors")
    with pytest.raises(BadRecipe, match="is not a regular expression"):
        Saving(discard="[")


def test_a_header_of_ones_own_may_hold_any_values(files, tmp_path):
    fields = {"author": "me", "numbers": [1, {"a": None}], "n": 3}
    merge(files / "tiny.safetensors", saving=Saving(metadata=fields), out=tmp_path / "out.safetensors")
    found = open_tensors(tmp_path / "out.safetensors").metadata
    assert (found["author"], json.loads(found["numbers"]), found["n"]) == ("me", fields["numbers"], "3")


def test_a_strange_recipe_in_a_parent_is_no_obstacle(tmp_path):
    tensors = {"model.diffusion_model.out.2.weight": torch.ones(2)}
    write_safetensors(tmp_path / "first.safetensors", tensors)
    for number, strange in enumerate(("[" * 5000, "not json", "[1, 2]", '{"a": 1}')):
        path = tmp_path / f"{number}.safetensors"
        write_safetensors(path, tensors, {"sd_merge_models": strange, "sd_merge_recipe": strange})
        merge(tmp_path / "first.safetensors", path, out=tmp_path / "out.safetensors")
    known = json.loads(open_tensors(tmp_path / "out.safetensors").metadata["sd_merge_models"])
    assert known.pop("a") == 1
    assert [model["sd_merge_recipe"] for model in known.values()] == [None, {"a": 1}]


def test_the_report_tells_what_is_left_of_each(files, tmp_path):
    names = [files / f"{name}.safetensors" for name in ("one", "two", "tiny")]
    _, report = merge(*names[:2], 0.25, against=names[2], out=tmp_path / "out.safetensors")
    # one and two differ from tiny by noises that know nothing of each other, so their shares are their strengths
    assert report.dilution.against == "tiny"
    assert [parent.parent for parent in report.dilution.whole] == ["one", "two"]
    assert [parent.left for parent in report.dilution.whole] == pytest.approx([0.75, 0.25], abs=0.01)
    assert [parent.cosine for parent in report.dilution.whole] == pytest.approx(
        [0.949, 0.316], abs=0.01
    )  # 3 and 1 by √10
    assert [row.part for row in report.dilution.parts] == ["text", "UNet in", "UNet mid", "UNet out", "VAE", "whole"]
    assert MergeReport.model_validate_json(report.model_dump_json()) == report
    assert "left of each model's difference from tiny" in str(report)
    _, in_memory = merge(*names[:2], 0.25, against=names[2])
    assert in_memory.dilution == report.dilution
    measured = measure_retention(tmp_path / "out.safetensors", names[:2], against=names[2])
    assert measured.whole == report.dilution.whole


def test_without_a_common_base_each_is_measured_against_the_other(files, tmp_path):
    _, report = merge(files / "tiny.safetensors", files / "one.safetensors", 0.3, out=tmp_path / "out.safetensors")
    assert [parent.left for parent in report.dilution.whole] == pytest.approx([0.7, 0.3], abs=1e-5)
    assert report.dilution.against == "each other"
    assert "from each other (name their common base with against for better figures)" in str(report)


def test_an_added_difference_leaves_the_first_whole(files, tmp_path):
    names = [files / f"{name}.safetensors" for name in ("one", "two", "tiny")]
    _, report = merge(names[0], names[1], 0.5, minus=names[2], out=tmp_path / "out.safetensors")
    assert [parent.left for parent in report.dilution.whole] == pytest.approx([1.0, 0.5], abs=0.01)


def test_parts_that_nobody_changed_have_nothing_to_lose(tiny):
    other = changed(3, ("unet",))
    merged, report = merge(tiny, other, 0.5)
    found = measure_retention(merged, [tiny, other])
    assert found == report.dilution
    text = next(row for row in found.parts if row.part == "text")
    assert {parent.left for parent in text.parents} == {None}
    assert "tiny has none" in str(found)
    with pytest.raises(NoEffect, match="two parents"):
        measure_retention(tiny, [other])


def test_a_common_base_that_cannot_be_one_is_refused(files, xl, tmp_path):
    names, out = [files / f"{name}.safetensors" for name in ("one", "two")], tmp_path / "out.safetensors"
    for path in (out, None):
        with pytest.raises(WrongBase, match=r"has only \d+ of the \d+ weights of one, which cannot come from it"):
            merge(*names, against=xl, out=path)
        with pytest.raises(BadRecipe, match="against is for a merge of two models"):
            merge(names[0], against=names[1], out=path)
    with pytest.raises(WrongBase, match=r"has only \d+ of the \d+ weights of one, which cannot come from it"):
        measure_retention(names[0], names, against=xl)
    assert not out.exists()


def test_models_of_two_families_are_refused(files, xl, tmp_path):
    velatura.save(xl, tmp_path / "xl.safetensors")
    with pytest.raises(WrongBase):
        merge(files / "tiny.safetensors", tmp_path / "xl.safetensors", out=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_not_finite_never_reaches_a_file(files, tmp_path):
    tensors = dict(open_tensors(files / "one.safetensors").tensors)
    tensors["first_stage_model.quant_conv.weight"][0] = torch.nan
    write_safetensors(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(BadFile, match="NaN or infinite"):
        merge(files / "tiny.safetensors", tmp_path / "bad.safetensors", out=tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_what_is_no_model_is_refused(files, lora, tmp_path):
    velatura.save(lora(), tmp_path / "lora.safetensors")
    for sources in ((tmp_path / "lora.safetensors",), (files / "tiny.safetensors", tmp_path / "lora.safetensors")):
        with pytest.raises(BadFile, match="is not a Stable Diffusion checkpoint"):
            merge(*sources, out=tmp_path / "out.safetensors")


def test_two_precisions_mix_in_the_wider(files, tmp_path):
    velatura.save(changed(4), tmp_path / "half.safetensors", dtype="float16")
    merge(tmp_path / "half.safetensors", files / "one.safetensors", out=tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in open_tensors(tmp_path / "out.safetensors").tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "sum"}, UnknownName, "weighted-sum"),
        ({"mode": "sigmoid", "strength": 1.5}, BadRecipe, "from 0 to 1"),
        ({"strength": float("nan")}, BadRecipe, "strength"),
        ({"share": 0.5}, BadRecipe, "leave the share out"),
        ({"mode": "dare", "share": 0.0}, BadRecipe, "share"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(tiny, one, options, error, message):
    with pytest.raises(error, match=message):
        merge(tiny, one, **options)


def test_another_ending_and_a_lone_models_strength_are_refused(files, tmp_path):
    with pytest.raises(BadRecipe, match=r"end it in \.safetensors"):
        merge(files / "tiny.safetensors", files / "one.safetensors", out=tmp_path / "out.ckpt")
    with pytest.raises(BadRecipe, match="give a second one"):
        merge(files / "tiny.safetensors", strength=0.5, out=tmp_path / "out.safetensors")
