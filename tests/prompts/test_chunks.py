"""The webui's own chunks (tests/data/a1111/chunks.json), with embeddings in them, made with two tokenizers."""

import json
import re
from pathlib import Path
from zlib import crc32

import pytest
from instant_clip_tokenizer import Tokenizer

from velatura.base.token_registry import Placeholder, PlaceholderMatcher
from velatura.errors import BadOverlay
from velatura.prompts.chunks import split_into_chunks, token_count
from velatura.prompts.emphasis import parse_emphasis

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "a1111" / "chunks.json").read_text("utf-8"))
START, END = 49406, 49407
CLIP = Tokenizer()


def toy_ids(text):
    """The toy tokenizer of the recordings."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return [267 if word == "," else 1000 + crc32(word.encode()) % 40000 for word in words]


TOKENIZERS = {"toy": toy_ids, "clip_bpe": CLIP.encode}


def known_words(token_ids):
    """The embeddings of the recordings; the first token of each one's vectors tells which it is."""
    return PlaceholderMatcher(
        Placeholder(name, tuple(token_ids(name)), (-i, *[0] * (count - 1)))
        for i, (name, count) in enumerate(RECORDED["embeddings"].items(), 1)
    )


def spread(runs):
    return [value for value, times in runs for _ in range(times)]


@pytest.mark.parametrize(
    "case",
    RECORDED["cases"],
    ids=lambda case: f"{case['tokenizer']} {case['prompt'][-30:]} {case['comma_padding_backtrack']}",
)
def test_chunks_are_the_webuis(case):
    token_ids = TOKENIZERS[case["tokenizer"]]
    [comma] = token_ids(",")
    words = known_words(token_ids)
    arguments = (
        *(parse_emphasis(case["prompt"]), lambda text: words.substitute(token_ids(text))),
        *(comma, case["comma_padding_backtrack"]),
    )
    assert token_count(*arguments) == case["token_count"]
    chunks = split_into_chunks(*arguments)
    for chunk, expected in zip(chunks, case["chunks"], strict=True):
        tokens = [START, *(max(0, piece.token) for piece in chunk)]
        assert tokens + [END] * (77 - len(tokens)) == expected["tokens"]
        emphasis = [1.0, *(piece.emphasis for piece in chunk)]
        assert emphasis + [1.0] * (77 - len(emphasis)) == spread(expected["multipliers_rle"])
        expected_fixes = [fix for fix in expected["fixes"] if fix[0] < len(chunk)]
        assert [fix for fix in placed(chunk) if fix in expected_fixes] == expected_fixes
    # The webui leaves the vectors of an embedding behind, on padding, where its tokens move to the next chunk.
    ours = [name for chunk in chunks for _, name in placed(chunk)]
    theirs = [name for chunk in fixes(case) for _, name in chunk]
    assert ours == theirs


def placed(chunk):
    """Where in a chunk which embeddings start."""
    names = list(RECORDED["embeddings"])
    return [[i, names[-piece.token - 1]] for i, piece in enumerate(chunk) if piece.token < 0]


def fixes(case):
    return [chunk["fixes"] for chunk in case["chunks"]]


def test_the_longest_name_is_found_first():
    words = PlaceholderMatcher(
        [Placeholder("a", (1,), (10,)), Placeholder("a b c", (1, 2, 3), (11,)), Placeholder("a b", (1, 2), (12,))]
    )
    assert words.find_names([1, 2, 3, 1, 2, 2, 1, 1, 2, 3]) == ["a b c", "a b", "a", "a b c"]


def test_a_name_without_tokens_is_never_found():
    assert PlaceholderMatcher([Placeholder(" ", (), (10,))]).find_names([1, 2]) == []


def test_an_embedding_that_no_chunk_has_room_for_is_refused():
    with pytest.raises(BadOverlay, match="huge has 76 vectors: one chunk of a prompt holds 75"):
        PlaceholderMatcher([Placeholder("huge", (1,), (0,) * 76)])
