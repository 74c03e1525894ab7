from threading import Thread

import pytest

from velatura.errors import (
    UnknownName,
    VelaturaWarning,
    gather_warnings,
    ignore_warnings,
    quantity,
    redirect_warnings,
    warn,
    warn_of_picture,
)


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert str(UnknownName.with_suggestions("sampler", "Eular a", ["Euler a", "DDIM"])) == (
        "no sampler is called 'Eular a': did you mean 'Euler a'?"
    )


def test_case_does_not_hide_the_nearest_name() -> None:
    assert "'Inca'" in str(UnknownName.with_suggestions("overlay", "INKA", ["Inca", "blueprint"]))


def test_a_name_near_none_lists_the_choices() -> None:
    assert str(UnknownName.with_suggestions("sampler", "xyz", ["DDIM", "Euler"])) == (
        "no sampler is called 'xyz': choose one of 'DDIM', 'Euler'"
    )


def test_an_empty_list_says_so() -> None:
    assert "none is known" in str(UnknownName.with_suggestions("overlay", "inca", []))


def test_a_files_folder_and_ending_do_not_hide_the_nearest_name() -> None:
    assert "did you mean 'inca'?" in str(
        UnknownName.with_suggestions("file", "models/inka.safetensors", ["inca", "blueprint"])
    )


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (0, ["layer"], "0 layers"),
        (1, ["layer"], "1 layer"),
        (1, ["entry", "entries"], "1 entry"),
        (2, ["entry", "entries"], "2 entries"),
        (1200, ["step"], "1,200 steps"),
    ],
)
def test_a_count_stands_with_its_noun_in_the_right_number(count, words, expected) -> None:
    assert quantity(count, *words) == expected


@gather_warnings()
def warn_of_three(error: Exception | None = None) -> None:
    warn_of_picture("size", "a is large")
    with gather_warnings():
        warn_of_picture("size", "b is large")
    warn_of_picture("colour", "a is grey")
    if error:
        raise error


def test_warnings_of_a_kind_are_gathered_into_one_and_those_outside_are_not() -> None:
    with pytest.warns(VelaturaWarning) as caught:
        warn_of_three()
    assert [str(warning.message) for warning in caught] == ["a is large (and 1 more of this kind)", "a is grey"]
    with pytest.warns(VelaturaWarning, match="^c is large$"):
        warn_of_picture("size", "c is large")


@pytest.mark.filterwarnings("always")
def test_gathered_warnings_are_given_before_an_error() -> None:
    with pytest.warns(VelaturaWarning) as caught, pytest.raises(ValueError, match="stop"):
        warn_of_three(ValueError("stop"))
    assert len(caught) == 2


def test_redirected_warnings_are_not_gathered_around_the_block() -> None:
    messages: list[str] = []
    with gather_warnings():
        with redirect_warnings(messages.append):
            warn_of_three()
        with ignore_warnings():
            warn_of_picture("size", "nobody hears this")
    assert messages == ["a is large (and 1 more of this kind)", "a is grey"]


def test_redirected_warnings_are_those_of_one_thread() -> None:
    here: list[str] = []
    there: list[str] = []

    def warn_elsewhere() -> None:
        with redirect_warnings(there.append):
            warn("the sea is high")

    with redirect_warnings(here.append):
        thread = Thread(target=warn_elsewhere)
        thread.start()
        thread.join()
        warn("the wind is low")
        with ignore_warnings():
            warn("nobody hears this")
    assert (here, there) == (["the wind is low"], ["the sea is high"])
    with pytest.warns(VelaturaWarning, match="^it is over$"):
        warn("it is over")
