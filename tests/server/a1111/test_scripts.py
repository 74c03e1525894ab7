"""The X/Y/Z plot and the prompt matrix, by A1111's arguments."""

from __future__ import annotations

import pytest

from tests.server.a1111.conftest import SMALL

NONE = [0, "", []]


def test_scripts_are_listed(a1111):
    titles = ["prompt matrix", "x/y/z plot"]
    assert a1111.get("scripts") == {"txt2img": titles, "img2img": titles}
    info = {(script["name"], script["is_img2img"]): script for script in a1111.get("script-info")}
    arguments = info["x/y/z plot", False]["args"]
    assert [argument["label"] for argument in arguments[:3]] == ["X type", "X values", "X values (list)"]
    assert arguments[0]["choices"][:6] == ["Nothing", "Seed", "Var. seed", "Var. strength", "Steps", "Hires steps"]
    assert "Hires steps" not in info["x/y/z plot", True]["args"][0]["choices"]


def test_a_plot_of_seeds_and_steps(a1111):
    images, info = a1111.paint(script_name="X/Y/Z plot", script_args=[1, "3-4", [], 4, "1,2", [], *NONE, True, True])
    assert len(images) == 5
    assert info["all_seeds"] == [3, 3, 4, 3, 4]
    assert 'Script: X/Y/Z plot, X Type: seed, X Values: "3, 4", Y Type: steps, Y Values: "1, 2"' in info["infotexts"][0]
    assert (info["index_of_first_image"], images[1].size) == (1, (64, 64))


def test_a_plot_replaces_words_and_takes_lists(a1111):
    images, info = a1111.paint(script_name="x/y/z plot", script_args=["Prompt S/R", "red,blue", [], *NONE, *NONE])
    assert len(images) == 1
    assert info["all_prompts"] == ["a red house"]
    images, _ = a1111.paint(script_name="x/y/z plot", script_args=["Sampler", "", ["Euler", "DDIM"]])
    assert len(images) == 1
    images, _ = a1111.paint(script_name="x/y/z plot", script_args=["Prompt order", "red,house", []])
    assert len(images) == 1


def test_a_prompt_matrix_makes_all_combinations(a1111):
    images, info = a1111.paint(prompt="a house|red|night", script_name="Prompt matrix")
    assert len(images) == 5
    assert info["all_prompts"][1:] == ["a house", "a house, red", "a house, night", "a house, red, night"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [999, "1", []],
        [-1, "1", []],
        [33, "a", []],
        [1, "one,two", []],
        [1, 7, []],
        ["no such axis", "1", []],
        [4, "1-1000000000", []],
        [8, "blue,green", []],
        [10, "no such sampler", []],
        [13, "no such checkpoint", []],
        [1, "1,2", [], 1, "1-200", []],
        [None] * 40,
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(a1111, arguments):
    answer = a1111.client.post(
        "/sdapi/v1/txt2img", json={"prompt": "a", "script_name": "x/y/z plot", "script_args": arguments, **SMALL}
    )
    assert answer.status_code in {413, 422}, answer.text
