"""Tokens of prompts, against what A1111 showed for them (tests/data/a1111/chunks.json)."""

import json
from pathlib import Path

import pytest

from velatura.formats.vocabulary import clip_tokenizer
from velatura.overlays.embedding import Embedding
from velatura.sampling.resolve.token_count import TokenCounter, vector_count

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "a1111" / "chunks.json").read_text("utf-8"))
EMBEDDINGS = RECORDED["embeddings"]


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter(clip_tokenizer(pads_with_zero=False))


def test_counts_are_those_that_a1111_shows(counter):
    cases = [
        case
        for case in RECORDED["cases"]
        if case["tokenizer"] != "toy" and case["comma_padding_backtrack"] == 20 and "[" not in case["prompt"]
    ]
    assert len(cases) > 20
    for case in cases:
        counted = counter.count(case["prompt"], EMBEDDINGS)
        assert counted == (case["token_count"], case["shown_limit"]), case["prompt"]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("a cat <lora:ink:0.8>", 2),  # a tag is no word
        ("a cat # or a dog", 2),  # nor is a comment
        ("a [cat:big black cat:0.5]", 4),  # the longest text of the steps
        ("a cat AND a big black cat", 4),  # the longest part
        ("(a cat:1.2", 2),
        ("a cat:9999999 AND a dog", 13),  # a weight that is refused is words: a cat : 9 9 9 9 9 9 9 and a dog
    ],
)
def test_syntax_counts_as_the_words_that_are_left(counter, prompt, tokens):
    assert counter.count(prompt, {}).tokens == tokens


def test_a_negative_prompt_reads_and_as_a_word(counter):
    assert counter.count("a cat AND a dog", {}, is_negative=True).tokens == 5


def test_the_vectors_of_an_embedding_are_counted(tiny):
    embedding = Embedding.for_base(tiny, name="my-style", vectors=3)
    assert vector_count(embedding.card) == 3
    assert vector_count(embedding.card.replace(outline="")) == 1
