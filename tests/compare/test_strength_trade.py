"""The best strength is where likeness times the sixth root of prompt kept is highest, with how sure that is."""

import pytest
import torch

from velatura.compare.strength_trade import best_strength, score_trade

STRENGTHS = (0.0, 0.5, 1.0, 1.5)


def columns(values, count=6):
    """The same curve for several prompts, (strengths, prompts)."""
    return torch.tensor(values)[:, None].expand(-1, count)


def test_the_top_of_two_straight_lines_is_the_one_of_calculus():
    # likeness s / 1.5 and the sixth root of kept 1 - s / 1.5: their product is highest at 0.75
    likeness = columns([strength / 1.5 for strength in STRENGTHS])
    found = best_strength(STRENGTHS, likeness, (1 - likeness) ** 6)
    assert found.strength == pytest.approx(0.75, abs=0.01)
    assert (found.low, found.high) == (found.strength, found.strength)  # all prompts agree


def test_the_points_of_the_curve_are_means_over_the_prompts():
    likeness = torch.tensor([[0.0, 0.0], [0.4, 0.6], [0.8, 1.0]])
    kept = torch.tensor([[1.0, 1.0], [0.9, 0.7], [0.2, 0.4]])
    points = best_strength((0.0, 0.5, 1.0), likeness, kept).points
    assert [point.likeness for point in points] == pytest.approx([0, 0.5, 0.9])
    assert [point.kept for point in points] == pytest.approx([1, 0.8, 0.3])
    assert [point.score for point in points] == pytest.approx([0, 0.5 * 0.8 ** (1 / 6), 0.9 * 0.3 ** (1 / 6)])


def test_prompts_that_disagree_give_an_interval():
    early, late = [0.0, 1.0, 0.2, 0.0], [0.0, 0.2, 1.0, 0.9]
    likeness = torch.tensor([early, early, early, late, late, late]).T
    found = best_strength(STRENGTHS, likeness, torch.ones_like(likeness))
    assert found.low <= found.strength <= found.high
    assert found.high - found.low > 0.3


def test_an_overlay_that_never_loses_the_prompt_is_best_where_it_is_complete():
    likeness = columns([0.0, 0.5, 1.0, 1.0])
    assert 1.0 <= best_strength(STRENGTHS, likeness, torch.ones_like(likeness)).strength <= 1.5


def test_the_top_of_a_parabola_is_found_between_strengths_at_uneven_distances():
    strengths = (0.0, 0.4, 1.0, 1.3, 1.6)
    likeness = columns([1 - (strength - 0.9) ** 2 for strength in strengths])
    assert best_strength(strengths, likeness, torch.ones_like(likeness)).strength == pytest.approx(0.9, abs=1e-5)


def test_the_highest_and_the_lowest_strength_can_be_the_best():
    rising = columns([0.0, 0.2, 0.4, 0.9])
    assert best_strength(STRENGTHS, rising, torch.ones_like(rising)).strength == 1.5
    falling = rising.flip(0)
    assert best_strength(STRENGTHS, falling, torch.ones_like(falling)).strength == 0


def test_equal_scores_give_the_lowest_strength():
    flat = columns([0.5, 0.5, 0.5, 0.5])
    assert best_strength(STRENGTHS, flat, torch.ones_like(flat)).strength == 0


def test_a_score_counts_nothing_beyond_0_and_1():
    found = score_trade(torch.tensor([-0.5, 1.5, 0.5]), torch.tensor([1.0, 1 / 64, 2.0]))
    assert found.tolist() == [0, 0.5, 0.5]


def test_another_score_has_another_top():
    strengths = tuple(step / 5 for step in range(8))
    likeness = columns([strength / 1.5 for strength in strengths])
    by_product = best_strength(strengths, likeness, 1 - likeness, lambda near, own: near * own)
    assert by_product.strength == pytest.approx(0.75, abs=0.01)  # of s (1.5 - s)
    by_root = best_strength(strengths, likeness, 1 - likeness)
    assert by_root.strength == pytest.approx(9 / 7, abs=0.07)  # of s times the sixth root of 1.5 - s: 6/7 of 1.5
