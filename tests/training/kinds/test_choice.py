"""The choice of a kind of overlay: its table, and what it says that a training costs."""

from pathlib import Path

import pytest

import velatura
from velatura.training.kinds.choice import (
    ANY_FAMILY,
    CHOICES,
    PURPOSES,
    UNET_PARAMETERS,
    Machine,
    advice_for,
    count_parameters,
    estimate_cost,
)

DOCS = Path(__file__).parents[3] / "docs" / "overlays.md"
GPU = Machine("cuda", flops=50e12, memory=24 * 2**30, value_bytes=2)


def test_the_docs_hold_the_same_table():
    rows = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `")]
    advice = [
        f"| {PURPOSES[purpose]} | {row.first} | {row.reason} | {row.second} | {row.second_if} |"
        for purpose, by_family in CHOICES.items()
        for row in by_family.values()
    ]
    assert [row[row.index("|", 1) :] for row in rows][-len(advice) :] == advice


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("family", UNET_PARAMETERS)
def test_every_purpose_has_two_kinds_and_their_costs_for_every_family(purpose, family):
    advice = advice_for(purpose, family)
    assert advice.first != advice.second
    for kind in (advice.first, advice.second):
        cost = estimate_cost(kind, purpose, family, GPU)
        assert cost.minutes > 0
        assert cost.memory > 0
        assert cost.file_bytes > 0


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("hypernet", velatura.Hypernetwork.for_base),
        ("lora", lambda base: velatura.Lora.for_base(base, rank=16)),
        ("embedding", lambda base: velatura.Embedding.for_base(base, name="word", vectors=4, initial="*")),
        ("dreambooth", velatura.Difference.for_base),
    ],
)
def test_the_counts_of_parameters_are_those_of_the_commands_defaults(tiny, kind, make):
    trained = sum(weight.numel() for weight in make(tiny).parameters())
    assert count_parameters(kind, "tiny") == pytest.approx(trained, rel=0.01)


def test_a_hypernetwork_of_sd1_has_as_many_numbers_as_a1111s_files():
    assert count_parameters("hypernet", "SD1") * 4 == pytest.approx(87.7e6, rel=0.01)  # A1111's 1,2,1 take 87 MB


def test_twice_the_speed_halves_the_time():
    slow, fast = (estimate_cost("lora", "style", "SD1", GPU._replace(flops=flops)) for flops in (1e12, 2e12))
    assert slow.minutes == pytest.approx(2 * fast.minutes)


def test_little_memory_asks_for_gradient_checkpointing():
    small = GPU._replace(memory=6 * 2**30)
    assert not estimate_cost("lora", "style", "SD1", GPU).needs_checkpointing
    cost = estimate_cost("lora", "style", "SD1", small._replace(memory=4 * 2**30))
    assert cost.needs_checkpointing
    assert cost.memory < estimate_cost("lora", "style", "SD1", GPU).memory


def test_any_family_without_a_row_of_its_own_takes_the_general_one():
    assert advice_for("subject", "SDXL") == CHOICES["subject"][ANY_FAMILY]
