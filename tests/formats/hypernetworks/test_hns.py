"""Compositions as text, in the forms of the web UI extension that invented them: list, set, dict, tuple."""

import pytest
import torch

import velatura
from velatura.errors import BadFile
from velatura.formats.hypernetworks.hns import read as read_composition
from velatura.formats.hypernetworks.hns import read_hns
from velatura.overlays.composition import Blend, Leaf, Series


def read(tmp_path, text):
    (tmp_path / "mix.hns").write_text(text, encoding="utf-8")
    return read_hns(tmp_path / "mix.hns")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("'inca'", Leaf("inca")),
        ("('inca', 0.5)", Leaf("inca", 0.5)),
        ("{'inca': 0.5}", Leaf("inca", 0.5)),
        ("('inca', -1)", Leaf("inca", -1)),
        ("['inca', ('ink', 0.3)]", Series((Leaf("inca"), Leaf("ink", 0.3)))),
        ("{'inca', 'ink'}", Blend((Leaf("inca"), Leaf("ink")), (1, 1))),
        ("{'inca': 0.5, 'ink': 1}", Blend((Leaf("inca"), Leaf("ink")), (0.5, 1))),
        ("{('inca', 0.5): 2}", Blend((Leaf("inca", 0.5),), (2,))),
        (
            "\ufeff\n [{('inca', 0.5): 3, 'ink': 1}, # first\n  {('süß', 1), 'b c'}]\n",
            Series(
                (
                    Blend((Leaf("inca", 0.5), Leaf("ink")), (3, 1)),
                    Blend((Leaf("süß", 1), Leaf("b c")), (1, 1)),
                )
            ),
        ),
    ],
)
def test_a_literal_is_a_composition(tmp_path, text, tree):
    assert read(tmp_path, text) == tree


@pytest.mark.parametrize(
    "text",
    [
        "",
        "inca",
        "1",
        "None",
        "[]",
        "{}",
        "()",
        "('inca',)",
        "('inca', 1, 2)",
        "(1, 'inca')",
        "{'inca': 'ink'}",
        "('inca', 1e999)",
        "('inca', True)",
        "('inca', 1j)",
        "('inca', -'x')",
        "('inca', 1 + 1)",
        "{**{'a': 1}}",
        "{'a': 1, **{'b': 1}}",
        "{'a': -1, 'b': 2}",
        "{'a': 0, 'b': 0}",
        "['a' 'b', 'c'] + []",
        "f'{1}'",
        "b'inca'",
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "[x for x in ('a', 'b')]",
        "'a' if 1 else 'b'",
        "'inca",
        "[",
        "('../inca', 1)",
        "'/etc/passwd'",
        "'a\\\\b'",
        "'<x>'",
        "'\\x1b[2J'",
        "' '",
        "a\0b",
        "[" * 150 + "'a'" + "]" * 150,
        "[" * 20 + "'a'" + "]" * 20,
        "[" * 5000,
        "-" * 10_000 + "1",
        "1" + "+1" * 5000,
        "9" * 6000,
        "('a', " + "9" * 400 + ")",
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(BadFile, match=r"^mix\.hns is not a composition of hypernetworks: [^\n]+$"):
        read(tmp_path, text)


def test_nothing_in_it_is_run(tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(BadFile, match="neither a list"):
        read(tmp_path, f"[open({str(marker)!r}, 'w'), 'inca']")
    assert not marker.exists()


def test_a_file_that_is_too_long_is_refused_before_it_is_parsed(tmp_path):
    with pytest.raises(BadFile, match="longer than 16384 bytes"):
        read(tmp_path, "[" + "'a'," * 5000 + "]")


def test_too_many_hypernetworks_are_refused(tmp_path):
    with pytest.raises(BadFile, match="names 1000 hypernetworks"):
        read(tmp_path, "[" + "'a'," * 1000 + "]")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"none\.hns: No such file"):
        read_hns(tmp_path / "none.hns")


def test_text_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "mix.hns").write_bytes(b"'s\xfc\xdf'")
    with pytest.raises(BadFile, match="cannot be read"):
        read_hns(tmp_path / "mix.hns")


def test_a_composition_acts_as_its_parts_in_order(hyper, tmp_path):
    members = {"inca": hyper(seed=1), "ink": hyper(seed=2)}
    (tmp_path / "mix.hns").write_text("[('inca', 0.5), 'ink']")
    composition = read_composition(tmp_path / "mix.hns", members.__getitem__)
    context = torch.randn(1, 3, 96)
    expected = members["ink"].transform(members["inca"].transform(context, 0.5)[0])[0]
    assert torch.allclose(composition.transform(context)[0], expected, atol=1e-6)
    assert composition.card.name == "mix"


def test_a_name_is_looked_for_once(hyper, tmp_path):
    names = []
    (tmp_path / "mix.hns").write_text("['inca', 'ink', 'inca']")
    read_composition(tmp_path / "mix.hns", lambda name: names.append(name) or hyper())
    assert names == ["inca", "ink"]


def test_a_composition_within_a_composition_is_refused(hyper, tmp_path):
    (tmp_path / "mix.hns").write_text("['inca']")
    composition = read_composition(tmp_path / "mix.hns", lambda _: hyper())
    with pytest.raises(BadFile, match=r"mix\.hns names 'inca', which is not a plain hypernetwork"):
        read_composition(tmp_path / "mix.hns", lambda _: composition)


def test_compositions_that_name_each_other_are_refused(tmp_path):
    for name, other in ("ab", "ba"):
        (tmp_path / f"{name}.hns").write_text(f"['{other}']")
    with pytest.raises(BadFile, match=r"a\.hns refers to the composition 'b'"):
        velatura.Library(tmp_path).overlay("a")
