"""The best strength is where likeness times prompt kept is highest; its interval says how sure that is."""

import pytest
import torch

from velatura.compare.strength_trade import best_strength, score

STRENGTHS = (0.0, 0.5, 1.0, 1.5)


def columns(values, count=6):
    """The same curve for several prompts, (strengths, prompts)."""
    return torch.tensor(values)[:, None].expand(-1, count)


def test_the_top_of_two_straight_lines_is_the_one_of_calculus():
    # likeness s / 1.5 and kept 1 - s / 1.5: their product is highest at 0.75
    likeness = columns([strength / 1.5 for strength in STRENGTHS])
    found = best_strength(STRENGTHS, likeness, 1 - likeness)
    assert found.strength == pytest.approx(0.75, abs=0.01)
    assert (found.low, found.high) == (found.strength, found.strength)  # all prompts agree


def test_the_points_of_the_curve_are_means_over_the_prompts():
    likeness = torch.tensor([[0.0, 0.0], [0.4, 0.6], [0.8, 1.0]])
    kept = torch.tensor([[1.0, 1.0], [0.9, 0.7], [0.2, 0.4]])
    points = best_strength((0.0, 0.5, 1.0), likeness, kept).points
    assert [point.likeness for point in points] == pytest.approx([0, 0.5, 0.9])
    assert [point.kept for point in points] == pytest.approx([1, 0.8, 0.3])
    assert [point.score for point in points] == pytest.approx([0, 0.4, 0.27])


def test_prompts_that_disagree_give_an_interval():
    early, late = [0.0, 1.0, 0.2, 0.0], [0.0, 0.2, 1.0, 0.9]
    likeness = torch.tensor([early, early, early, late, late, late]).T
    found = best_strength(STRENGTHS, likeness, torch.ones_like(likeness))
    assert found.low <= found.strength <= found.high
    assert found.high - found.low > 0.3


def test_an_overlay_that_never_loses_the_prompt_is_best_where_it_is_complete():
    likeness = columns([0.0, 0.5, 1.0, 1.0])
    assert best_strength(STRENGTHS, likeness, torch.ones_like(likeness)).strength == pytest.approx(1.0)


def test_a_score_counts_nothing_beyond_0_and_1():
    found = score(torch.tensor([-0.5, 1.5, 0.5]), torch.tensor([1.0, 0.5, 2.0]))
    assert found.tolist() == [0, 0.5, 0.5]
