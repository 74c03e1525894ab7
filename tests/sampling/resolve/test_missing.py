"""What a recipe needs and a library lacks."""

import pytest

import velatura
from velatura.errors import UnknownName, ignore_warnings
from velatura.sampling.resolve.missing import MissingPart, find_missing

HERE = {
    *(("checkpoint", "deliberate"), ("lora", "ink"), ("lora", "0123abcd"), ("lora", "civitai:77")),
    *(("embedding", "bad-hands"), ("vae", "kl")),
}
INFOTEXT = "a cat{words}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64{fields}"


def find(name: str, kind: str) -> None:
    if (kind, name) not in HERE:
        raise UnknownName(f"no {kind} is called {name}")


@pytest.mark.parametrize(
    ("words", "fields", "expected"),
    [
        ("", "", []),
        (" <lora:ink:0.5>", ", Model: deliberate, VAE: kl", []),
        (" <lora:ink:0.5>", ", Model: tiny", []),
        (" <lora:inks:0.5> <lyco:inks:1>", "", [("lora", "inks", "")]),
        (" <hypernet:ink:1>", "", [("hypernet", "ink", "")]),
        # renamed: the recipe records the hash of a file that is here
        (" <lora:inks:0.5>", ', Lora hashes: "inks: 0123abcd"', []),
        (" <lora:inks:0.5>", ', Lora hashes: "inks: ffffffff"', [("lora", "inks", "ffffffff")]),
        (", bad-hands", ', TI hashes: "bad-hands: 77777777"', []),
        (", good-hands", ', TI hashes: "good-hands: 77777777"', [("embedding", "good-hands", "77777777")]),
        ("", ", Model hash: 88888888, Model: anything", [("base", "anything", "88888888")]),
        ("", ", VAE: other.vae.pt", [("vae", "other.vae.pt", "")]),
        # Civitai's list: by the number of the version, by the hash, by the name, and none of them
        ("", ', Civitai resources: [{"type":"lora","modelVersionId":77}]', []),
        ("", ', Civitai resources: [{"type":"lora","modelName":"Ink, again","hash":"0123ABCD"}]', []),
        ("", ', Civitai resources: [{"type":"lora","modelName":"ink","modelVersionId":9}]', []),
        ("", ', Civitai resources: [{"type":"lora","modelVersionId":9}]', [("lora", "civitai:9", "")]),
        ("", ', Civitai resources: [{"type":"lora","modelName":"Gone"}]', [("lora", "Gone", "")]),
    ],
)
def test_what_is_not_here_is_named_once(words, fields, expected):
    with ignore_warnings():
        recipe = velatura.Recipe.from_text(INFOTEXT.format(words=words, fields=fields))
    assert find_missing(recipe, find, frozenset({"tiny"})) == [MissingPart(*part) for part in expected]


def test_an_unknown_sampler_and_schedule_are_missing():
    recipe = velatura.Recipe(prompt="a cat", sampler="Fancy 3M", scheduler="Zigzag")
    assert find_missing(recipe, find) == [MissingPart("sampler", "Fancy 3M"), MissingPart("scheduler", "Zigzag")]
