"""The arithmetic of cutting."""

import json
from pathlib import Path

import pytest

from velatura.datasets.boxes import (
    bucket_sizes,
    crop_coverage,
    largest_box,
    nearest_size,
    sizes_between,
    split_boxes,
)

GOLDEN = Path(__file__).parents[1] / "data" / "a1111" / "preprocess.json"  # made by the webui v1.4.0
CASES = json.loads(GOLDEN.read_text())["cases"]


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] == "split"])
def test_long_pictures_are_split_as_in_the_webui(case):
    size, target = tuple(case["image"]), tuple(case["target"])
    assert crop_coverage(size, target) == pytest.approx(case["ratio"])
    if crop_coverage(size, target) < 1:
        resized, boxes = split_boxes(size, target, case["overlap"])
        assert [list(box) for box in boxes] == case["crops_after_resize"]
        assert boxes[-1][2:] == resized


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] == "autosize"])
def test_sizes_are_chosen_as_in_the_webui(case):
    choices = sizes_between(case["mindim"], case["maxdim"], (case["minarea"], case["maxarea"]))
    by_area = case["objective"] == "Maximize area"
    chosen = nearest_size(tuple(case["image"]), choices, case["threshold"], is_by_area=by_area)
    assert chosen == (tuple(case["size"]) if case["size"] else None)
    if chosen:
        assert largest_box(tuple(case["image"]), chosen) == pytest.approx(case["source_box"])


def test_buckets_have_about_the_area_asked_for():
    sizes = bucket_sizes(512)
    assert {(512, 512), (448, 576), (576, 448), (256, 1024), (384, 640)} <= set(sizes)
    assert all(width % 64 == 0 and height % 64 == 0 and width * height <= 512 * 512 for width, height in sizes)
    assert all((height, width) in sizes for width, height in sizes)
    assert (64, 64) in bucket_sizes(64)
    assert nearest_size((3000, 2000), sizes) == (640, 384)  # 5:3 leaves out a tenth of 3:2, 9:7 a seventh


def test_a_box_stays_inside_however_far_aside_its_focus_is():
    assert largest_box((200, 100), (1, 1)) == (50, 0, 150, 100)
    assert largest_box((200, 100), (1, 1), (0.1, 0.9)) == (0, 0, 100, 100)
    assert largest_box((200, 100), (1, 1), (0.6, 0.0)) == (70, 0, 170, 100)
    assert largest_box((100, 300), (1, 2), (0.5, 1.0)) == (0, 100, 100, 300)
