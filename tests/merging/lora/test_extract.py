import pytest
import torch

import velatura
from tests.merging.predictions import predict_noise, predict_with, relative_difference
from velatura.errors import BadOverlay, NoEffect, WrongBase
from velatura.merging.lora.extract import ExtractReport, extract
from velatura.merging.lora.svd import nearest_low_rank
from velatura.overlays.deltas.delta import LAYER_TYPES
from velatura.overlays.lora.kohya_names import kohya_names
from velatura.overlays.target import Target


def matrix(*shape: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(*shape, generator=generator)
    wide = torch.randn(rank, *shape[1:], generator=generator)
    return torch.einsum("or,r...->o...", torch.randn(shape[0], rank, generator=generator), wide) / rank


@pytest.fixture(scope="module")
def other() -> velatura.Base:
    """A tiny base whose layers are changed by products of rank 3, but for norms and biases."""
    base = velatura.tiny()
    base.name, target = "other", Target.from_model(base)
    with torch.no_grad():
        for seed, name in enumerate(kohya_names(target).values()):
            weight = target.layer(name).weight
            if weight.ndim > 1:
                weight.add_(0.05 * weight.std() * matrix(*weight.shape, rank=3, seed=seed))
    return base


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (20, 10, 3, 3)])
@pytest.mark.parametrize("rank", [1, 5])
def test_the_nearest_of_a_rank_is_the_truncated_svd(shape, rank):
    change = matrix(*shape)
    u, s, vh = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ vh[:rank]
    found = nearest_low_rank(change, rank)
    assert torch.allclose(found.weight_delta(change).flatten(1).double(), wanted, atol=1e-5)
    up, down = found.required_tensor("lora_up.weight").flatten(1), found.required_tensor("lora_down.weight").flatten(1)
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1))


def test_the_randomized_svd_of_a_large_matrix_is_as_near():
    change = matrix(600, 700, rank=200) + 0.01 * matrix(600, 700, seed=1)
    s = torch.linalg.svdvals(change)
    best = (s[40:].square().sum() / s.square().sum()).sqrt().item()
    assert relative_difference(nearest_low_rank(change, 40).weight_delta(change), change) < 1.01 * best
    assert torch.equal(nearest_low_rank(change, 40).product(), nearest_low_rank(change, 40).product())


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_a_tolerance_takes_the_least_rank_that_is_near_enough(tolerance):
    change = matrix(30, 50)
    s = torch.linalg.svdvals(change).square()
    least = next(r for r in range(1, 31) if s[r:].sum() <= tolerance**2 * s.sum())
    found = nearest_low_rank(change, tolerance=tolerance)
    assert found.rank == least
    assert relative_difference(found.weight_delta(change), change) <= tolerance * 1.001
    assert nearest_low_rank(change, 2, tolerance).rank == min(2, least)


def test_no_change_has_no_nearest():
    assert nearest_low_rank(torch.zeros(4, 4), 2) is None


def test_a_change_of_low_rank_is_extracted_whole(tiny, other):
    lora, report = extract(tiny, other, rank=3)
    found, wanted = predict_with(tiny, (lora, 1.0)), predict_noise(other)
    assert relative_difference(found, wanted) < 1e-4 * relative_difference(predict_noise(tiny), wanted) + 1e-5
    assert report.whole.missed < 1e-4
    assert report.whole.ranks == (3, 3)
    assert report.whole.left_out == 0
    assert [fit.part for fit in report.parts] == ["text", "UNet in", "UNet mid", "UNet out", "whole"]
    assert (lora.card.name, lora.card.base, lora.card.family) == ("other", "tiny", "tiny")


def test_a_higher_rank_misses_less(tiny, other):
    errors = [extract(tiny, other, rank=rank)[1].whole.missed for rank in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    _, report = extract(tiny, other, tolerance=0.6)
    assert report.whole.missed <= 0.6
    assert ExtractReport.model_validate_json(report.model_dump_json()) == report
    assert "of the difference missed" in str(report)


def test_parts_and_convolutions_may_be_left_out(tiny, other):
    whole = set(extract(tiny, other, rank=1)[0].layers)
    assert {name for name in whole if name.startswith("lora_te_")}
    unet_only, _ = extract(tiny, other, rank=1, text=False)
    assert set(unet_only.layers) == {name for name in whole if "lora_unet" in name}
    without, report = extract(tiny, other, rank=1, conv_rank=0)
    kernels = {delta.required_tensor("lora_down.weight").shape[2:].numel() for delta in without.layers.values()}
    assert kernels == {1}
    assert report.whole.missed > 0.3


def test_changes_of_norms_and_biases_are_reported_as_left_out(tiny):
    changed = velatura.tiny()
    with torch.no_grad():
        changed.unet.conv_out.bias.add_(1)
        changed.unet.conv_out.weight.mul_(1.1)
    _, report = extract(tiny, changed, rank=4)
    assert report.whole.layers == 1
    size = (tiny.unet.conv_out.weight * 0.1).square().sum()
    assert report.whole.left_out == pytest.approx((4 / (4 + size.item())) ** 0.5, rel=1e-4)
    assert "in layers that a LoRA does not change" in str(report)


def test_files_give_what_bases_give_and_the_lora_can_be_saved(tiny, other, tmp_path):
    velatura.save(tiny, tmp_path / "tiny.safetensors")
    velatura.save(other, tmp_path / "other.safetensors")
    from_files, _ = extract(tmp_path / "tiny.safetensors", tmp_path / "other.safetensors", rank=2)
    ours, theirs = from_files.state_dict(), extract(tiny, other, rank=2)[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert len(from_files.card.base_hash) == 10
    velatura.save(from_files, tmp_path / "lora.safetensors")
    again = velatura.open_overlay(tmp_path / "lora.safetensors")
    before, after = (predict_with(tiny, (lora, 0.5)) for lora in (from_files, again))
    assert relative_difference(before, after) < 1e-3


def test_an_sdxl_has_two_text_encoders(xl):
    changed, _ = velatura.merge(xl, xl, 0.5)
    with torch.no_grad():
        for model in (changed.unet, *(encoder.model for encoder in changed.text.encoders)):
            for layer in model.modules():
                if isinstance(layer, LAYER_TYPES) and layer.weight.ndim > 1:
                    layer.weight.mul_(1.01)
    lora, _ = extract(xl, changed, rank=2)
    assert {name.split("_")[1] for name in lora.layers} == {"unet", "te1", "te2"}
    assert set(lora.layers) <= set(kohya_names(Target.from_model(xl)))
    assert all(delta in set(lora.deltas(Target.from_model(xl)).values()) for delta in lora.layers.values())


def test_wrong_models_and_ranks_are_refused(tiny, other, xl):
    with pytest.raises(NoEffect, match="do not differ"):
        extract(tiny, tiny, rank=2)
    with pytest.raises(WrongBase, match="one family"):
        extract(tiny, xl, rank=2)
    for options in ({"rank": 0}, {"rank": 2, "conv_rank": -1}, {"tolerance": 1.0}):
        with pytest.raises(BadOverlay):
            extract(tiny, other, **options)
