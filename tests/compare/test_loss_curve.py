"""The loss curve: round ticks, an unbiased mean, lines that stay on the paper."""

import re
from xml.etree import ElementTree

import pytest

from velatura.compare.training_report import CHART_HEIGHT, CHART_WIDTH, loss_curve, running_mean, ticks


# By hand
@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (1, 300, [100, 200, 300]), (0.031, 0.069, [0.04, 0.05, 0.06]), (3, 3, [3])],
)
def test_ticks_are_round_numbers_within_the_range(low, high, expected):
    assert ticks(low, high) == expected


def test_the_running_mean_starts_at_the_first_value_and_follows():
    assert running_mean([2.0] * 50) == pytest.approx([2.0] * 50)
    means = running_mean([1.0] * 100 + [0.0] * 100)
    assert [means[0], means[99]] == pytest.approx([1, 1])
    assert 0 < means[-1] < 0.01


@pytest.mark.parametrize("losses", [[0.5], [0.1, 0.1], [0.3, 0.1, 0.2], [1 / n for n in range(1, 400)]])
def test_the_curve_is_svg_and_stays_on_the_paper(losses):
    svg = loss_curve(losses)
    assert [line.get("class") for line in ElementTree.fromstring(svg).iter("polyline")] == ["each", "mean"]
    points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+),([\d.]+)", svg)]
    assert len(points) == 2 * len(losses)
    assert all(0 <= x <= CHART_WIDTH and 0 <= y <= CHART_HEIGHT for x, y in points)
