import pytest

from tools.tiny_base.tokenizer import learn_merges, make_tokenizer


def test_merges_are_learned_by_frequency_and_then_by_spelling():
    # "abab" four times, "cd" twice: (a, b) and (a, b</w>) four each, then (ab, ab</w>); (c, d</w>) comes last
    assert learn_merges(["abab abab cd abab cd abab"], 4) == [
        ("a", "b"),
        ("a", "b</w>"),
        ("ab", "ab</w>"),
        ("c", "d</w>"),
    ]


@pytest.mark.parametrize("word", ["lighthouse", "zürich", "日本", "<x>", "🦆", "don't"])
def test_any_word_survives(word):
    tokenizer = make_tokenizer(["a lighthouse by the sea"])
    assert tokenizer.decode(tokenizer(word).input_ids, skip_special_tokens=True).replace(" ", "") == word


def test_the_end_mark_has_the_last_id_and_pads():
    tokenizer = make_tokenizer(["a boat"])
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert tokenizer.bos_token_id == len(tokenizer) - 2
