import math

import pytest
import torch

from velatura.merging.checkpoints.modes import MODES, FormulaOptions, Parents, ties


def mix(mode: str, first, second, base=None, **options) -> torch.Tensor:
    tensors = [torch.tensor(values) for values in (first, second, first if base is None else base)]
    return MODES[mode].formula(Parents(*tensors), FormulaOptions(**{"strength": 1.0, **options}))


def test_a_sigmoid_lingers_at_both_ends_and_its_inverse_in_the_middle():
    steps = [mix("sigmoid", [0.0], [1.0], strength=s).item() for s in (0, 0.25, 0.5, 1)]
    assert steps == pytest.approx([0, 3 / 16 - 2 / 64, 0.5, 1])
    for s in (0.0, 0.2, 0.5, 0.9, 1.0):
        inverse = mix("inverse-sigmoid", [0.0], [1.0], strength=s).item()
        assert mix("sigmoid", [0.0], [1.0], strength=inverse).item() == pytest.approx(s, abs=1e-6)


def test_the_arc_between_two_at_right_angles_keeps_their_length():
    found = mix("slerp", [2.0, 0.0], [0.0, 2.0], strength=1 / 3)
    assert found.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)])


def test_the_arc_between_parallels_is_straight():
    assert mix("slerp", [1.0, 1.0], [3.0, 3.0], strength=0.5).tolist() == [2.0, 2.0]
    assert mix("slerp", [0.0, 0.0], [3.0, 3.0], strength=0.5).tolist() == [1.5, 1.5]


def test_ties_is_the_mean_of_those_that_agree_with_the_heavier_side():
    # the worked figure 1 of the paper in numbers: same signs, opposite signs, one of them alone, none at all
    base, first, second = [1.0, 1.0, 1.0, 1.0], [3.0, 4.0, 1.0, 1.0], [2.0, -1.0, 0.0, 1.0]
    assert mix("ties", first, second, base).tolist() == [2.5, 4.0, 0.0, 1.0]
    assert mix("ties", first, second, base, strength=0.5).tolist() == [1.75, 2.5, 0.5, 1.0]


def test_ties_keeps_the_largest_share_of_each_difference():
    base, first, second = torch.zeros(4), torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = ties(Parents(first, second, base), FormulaOptions(1.0, share=0.5))
    assert found.tolist() == pytest.approx([4.0, 3.0, 0.3, 0.4])


def test_dare_drops_by_chance_and_makes_up_for_it():
    first, second = torch.zeros(100_000), torch.ones(100_000)
    parents = Parents(first, second, first)
    found = MODES["dare"].formula(parents, FormulaOptions(0.5, share=0.2, seed=3, key="a"))
    assert set(found.tolist()) == {0.0, 2.5}  # 0.5 / 0.2
    assert found.mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(found, MODES["dare"].formula(parents, FormulaOptions(0.5, share=0.2, seed=3, key="a")))
    for other in (FormulaOptions(0.5, share=0.2, seed=4, key="a"), FormulaOptions(0.5, share=0.2, seed=3, key="b")):
        assert not torch.equal(found, MODES["dare"].formula(parents, other))


def test_strengths_beyond_the_parents_go_on_straight():
    assert mix("weighted-sum", [1.0], [2.0], strength=1.5).tolist() == [2.5]
    assert mix("add-difference", [1.0], [2.0], [0.5], strength=-1.0).tolist() == [-0.5]
