import json
import re
from pathlib import Path
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file

from velatura.prompts.emphasis import parse_emphasis
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import apply_emphasis, chunks_of, encode_prompts, split_into_chunks

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"
EMPHASIS = load_file(GOLDEN / "emphasis.safetensors")
START, END, COMMA = 49406, 49407, 267


def toy_ids(text):
    """The toy tokenizer of the recordings."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return [COMMA if word == "," else 1000 + crc32(word.encode()) % 40000 for word in words]


def recorded():
    cases = json.loads((GOLDEN / "chunks.json").read_text("utf-8"))["cases"]
    plain = [case for case in cases if not any(chunk["fixes"] for chunk in case["chunks"])]  # no embeddings in them
    return [case for case in plain if case["tokenizer"] == "toy"]


def spread(runs):
    return [value for value, times in runs for _ in range(times)]


def toy_groups(text):
    return [(token,) for token in toy_ids(text)]


@pytest.mark.parametrize(
    "case", recorded(), ids=lambda case: f"{case['prompt'][-30:]} {case['comma_padding_backtrack']}"
)
def test_chunks_are_the_webuis(case):
    chunks = split_into_chunks(parse_emphasis(case["prompt"]), toy_groups, COMMA, case["comma_padding_backtrack"])
    for chunk, expected in zip(chunks, case["chunks"], strict=True):
        tokens = [START, *(piece.token for piece in chunk)]
        assert tokens + [END] * (77 - len(tokens)) == expected["tokens"]
        emphasis = [1.0, *(piece.emphasis for piece in chunk)]
        assert emphasis + [1.0] * (77 - len(emphasis)) == spread(expected["multipliers_rle"])


@pytest.mark.parametrize("case", sorted({name.split(".")[0] for name in EMPHASIS}))
def test_emphasis_keeps_the_mean_as_in_the_webui(case):
    ours = apply_emphasis(EMPHASIS[f"{case}.z"], EMPHASIS[f"{case}.multipliers"])
    torch.testing.assert_close(ours, EMPHASIS[f"{case}.Original"], rtol=1e-5, atol=1e-5)


def test_a_short_plain_prompt_is_what_the_encoder_says_of_it(tiny):
    context = encode_prompts(tiny.text, [Prompt.parse("a red house")], 1).context
    torch.testing.assert_close(context, tiny.text.encode(["a red house"]), rtol=0, atol=0)


def test_a_prompt_is_encoded_the_same_beside_others(tiny):
    prompts = [Prompt.parse("a (red:1.5) house"), Prompt.parse("a boat"), Prompt.parse("a (red:1.5) house")]
    together = encode_prompts(tiny.text, prompts, 1).context
    assert torch.equal(together[1], encode_prompts(tiny.text, prompts[1:2], 1).context[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], encode_prompts(tiny.text, [Prompt.parse("a red house")], 1).context[0])


def test_a_short_prompt_is_filled_up_with_empty_chunks(tiny):
    context = encode_prompts(tiny.text, [Prompt.parse("a boat")], 2).context
    assert context.shape == (1, 154, tiny.text.width)
    assert torch.allclose(context[0, 77:], tiny.text.encode([""])[0], atol=1e-5)


def test_a_long_prompt_takes_as_many_chunks_as_it_needs(tiny):
    prompt = Prompt.parse("a red house, " * 40)
    chunks = chunks_of(tiny.text, prompt)
    assert [piece.token for chunk in chunks for piece in chunk] == tiny.text.token_ids("a red house, " * 40)
    assert all(len(chunk) <= 75 for chunk in chunks)
    assert encode_prompts(tiny.text, [prompt], len(chunks)).context.shape[1] == 77 * len(chunks)


@torch.no_grad()
def test_emphasis_restores_the_mean_of_each_tower_by_itself(xl):
    conditioning = encode_prompts(xl.text, [Prompt.parse("a (red:1.5) house")], 1)
    tokens = torch.ones(77)
    tokens[2] = 1.5  # start, a, red, house
    plain = [each.hidden[0] for each in xl.text.encode_chunks([xl.text.token_ids("a red house")])]
    torch.testing.assert_close(
        conditioning.context[0], torch.cat([apply_emphasis(each, tokens) for each in plain], dim=-1)
    )
    assert torch.equal(conditioning.pooled, xl.text.conditioning(["a red house"]).pooled)


@torch.no_grad()
def test_emphasis_of_comfyui_multiplies_the_difference_from_an_empty_prompt(tiny):
    [entry] = Prompt.parse("a (red:1.5) house").schedule(5, "ComfyUI")
    context = encode_prompts(tiny.text, entry.texts, 1, restores_mean=False).context[0]
    plain, empty = (encode_prompts(tiny.text, [Prompt.parse(words)], 1).context[0] for words in ("a red house", ""))
    start = 1 + len(tiny.text.token_ids("a"))
    weights = torch.ones(77, 1)
    weights[start : start + len(tiny.text.token_ids("red"))] = 1.5
    torch.testing.assert_close(context, empty + (plain - empty) * weights)


def test_emphasis_may_leave_the_mean_as_it_falls(tiny):
    conditioning = encode_prompts(tiny.text, [Prompt.parse("a (red:1.5) house")], 1, restores_mean=False).context[0]
    plain = tiny.text.encode(["a red house"])[0]
    scale = torch.ones(77, 1)
    scale[2] = 1.5
    torch.testing.assert_close(conditioning, plain * scale)


@torch.no_grad()
def test_the_first_chunk_speaks_for_the_whole_prompt(xl):
    conditioning = encode_prompts(xl.text, [Prompt.parse("a red house BREAK a boat"), Prompt.parse("a boat")], 2)
    assert conditioning.context.shape == (2, 154, 40)
    torch.testing.assert_close(conditioning.pooled, xl.text.conditioning(["a red house", "a boat"]).pooled)


@torch.no_grad()
def test_an_empty_negative_prompt_says_nothing_to_an_sdxl(xl, tiny):
    prompts = [Prompt.parse_negative(""), Prompt.parse_negative("blurry")]
    conditioning = encode_prompts(xl.text, prompts, 1, is_negative=True)
    assert conditioning.context[0].count_nonzero() == conditioning.pooled[0].count_nonzero() == 0
    assert torch.equal(conditioning.context[1], encode_prompts(xl.text, prompts, 1).context[1])
    assert encode_prompts(xl.text, prompts[:1], 1).context.count_nonzero() > 0
    assert torch.equal(
        encode_prompts(tiny.text, prompts, 1, is_negative=True).context, encode_prompts(tiny.text, prompts, 1).context
    )
