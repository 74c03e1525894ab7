import pytest
import torch

import velatura
from tests.merging.predictions import CALIBRATION_PROMPTS, predict_noise, relative_difference
from velatura.errors import BadOverlay
from velatura.merging.lora.from_hypernetwork import lora_from_hypernetwork, reduced_rank_regression


def change_and_moment() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    change, mixing = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 8), (8, 8)))
    scales = torch.logspace(0, -3, 8, dtype=torch.float64)  # features that contexts use a lot and hardly at all
    return change, mixing @ torch.diag(scales) @ mixing.T


def loss(change: torch.Tensor, product: torch.Tensor, moment: torch.Tensor) -> float:
    rest = change - product
    return (rest @ moment @ rest.T).trace().item()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_is_the_truncated_svd_where_contexts_weigh(rank):
    change, moment = change_and_moment()
    values, vectors = torch.linalg.eigh(moment)
    root, back = (vectors @ torch.diag(values**power) @ vectors.T for power in (0.5, -0.5))
    u, s, vh = torch.linalg.svd(change @ root)
    expected = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank] @ back
    found = reduced_rank_regression(change, moment, rank)
    assert found.up.shape == (6, rank)
    assert found.down.shape == (rank, 8)
    assert torch.allclose(found.product, expected, atol=1e-6)


def test_low_rank_loses_less_than_the_plain_svd():
    change, moment = change_and_moment()
    u, s, vh = torch.linalg.svd(change)
    plain = u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
    assert loss(change, reduced_rank_regression(change, moment, 2).product, moment) < 0.8 * loss(change, plain, moment)


def test_low_rank_of_full_rank_is_the_change_itself():
    change, moment = change_and_moment()
    assert torch.allclose(reduced_rank_regression(change, moment, 6).product, change)


def test_a_rank_above_the_layers_is_cut_to_it():
    change, moment = change_and_moment()
    assert reduced_rank_regression(change, moment, 32).up.shape == (6, 6)


def test_up_and_down_are_of_one_size():
    change, moment = change_and_moment()
    found = reduced_rank_regression(1e-4 * change, moment, 3)
    assert torch.allclose(found.up.norm(dim=0), found.down.norm(dim=1))


@torch.no_grad()
def with_lora(base: velatura.Base, lora: dict, strength: float = 1.0) -> torch.Tensor:
    """Return the prediction of a base with a LoRA added to its weights, which is subtracted again."""
    before = {name: base.unet.get_submodule(name).weight.clone() for name in lora}
    for name, change in lora.items():
        base.unet.get_submodule(name).weight += strength * change.product.float()
    found = predict_noise(base)
    for name, weight in before.items():
        base.unet.get_submodule(name).weight.copy_(weight)
    return found


def without_bias(overlay: velatura.Hypernetwork) -> velatura.Hypernetwork:
    with torch.no_grad():
        for name, weight in overlay.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
    return overlay


def test_a_linear_hypernetwork_without_bias_is_a_lora_exactly(tiny, hyper):
    overlay = without_bias(hyper(layers=(1, 0.25, 1)))  # of rank 48 at most
    lora, report = lora_from_hypernetwork(overlay, tiny, rank=48, prompts=CALIBRATION_PROMPTS, steps=1)
    for strength in (1.0, 0.4):
        with velatura.attach(tiny, overlay, strength):
            wanted = predict_noise(tiny)
        assert relative_difference(with_lora(tiny, lora, strength), wanted) < 1e-5
    assert report.output < 1e-5
    assert not report.is_exact  # as a rank may always cut something off


def test_every_layer_that_the_hypernetwork_changes_has_a_pair(tiny, hyper):
    lora, report = lora_from_hypernetwork(hyper(widths=(96,)), tiny, rank=4, prompts=CALIBRATION_PROMPTS, steps=1)
    assert len(lora) == 2 * 7
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in lora)
    assert {change.up.shape[1] for change in lora.values()} == {4}
    assert report.rank == 4
    assert "as a LoRA of rank 4" in str(report)


def test_more_rank_loses_less(tiny, hyper):
    overlay = hyper(activation="relu", widths=(96, 64))
    low, high = (
        lora_from_hypernetwork(overlay, tiny, rank=rank, prompts=CALIBRATION_PROMPTS, steps=1)[1] for rank in (2, 48)
    )
    assert high.output_missed < low.output_missed < 1
    assert all(a.v_missed < b.v_missed for a, b in zip(high.widths, low.widths, strict=True))


def test_a_shift_is_taken_up_as_far_as_contexts_allow(tiny, hyper):
    overlay = hyper(widths=(96,))
    lora, report = lora_from_hypernetwork(overlay, tiny, rank=96, prompts=CALIBRATION_PROMPTS, steps=1)
    with velatura.attach(tiny, overlay):
        wanted = predict_noise(tiny)
    assert relative_difference(with_lora(tiny, lora), wanted) < 0.05 * relative_difference(predict_noise(tiny), wanted)
    assert 0 < report.widths[0].v_missed < 0.05


def test_a_rank_of_nothing_is_refused(tiny, hyper):
    with pytest.raises(BadOverlay, match="rank 0"):
        lora_from_hypernetwork(hyper(), tiny, rank=0)
