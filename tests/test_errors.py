from velatura.errors import UnknownName


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
