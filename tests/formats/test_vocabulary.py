import hashlib
import json
import random
import unicodedata
from pathlib import Path

import pytest
from instant_clip_tokenizer import Tokenizer
from transformers import CLIPTokenizer

from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import UnsupportedBase
from velatura.formats import vocabulary
from velatura.formats.clip_vocabulary import load_clip_vocabulary
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import split_into_chunks

GOLDEN = Path(__file__).parents[1] / "data" / "a1111" / "chunks.json"
# of the merges in CLIP's own bpe_simple_vocab_16e6.txt, its lines 2 to 48895
MERGES = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"


@pytest.fixture(scope="module")
def clip():
    return vocabulary.clip_tokenizer(pads_with_zero=False)


@pytest.fixture(scope="module")
def token_ids(clip):
    return TextEncoder([ClipTextEncoder(clip, None)]).token_ids


def test_the_merges_are_clips_own():
    lines = "\n".join(map(" ".join, load_clip_vocabulary().merges))
    assert hashlib.sha256(lines.encode()).hexdigest() == MERGES


def test_every_id_has_its_token():
    words = load_clip_vocabulary().vocabulary
    assert sorted(words.values()) == list(range(49408))
    # ids as CLIP's vocab.json has them
    assert [words[each] for each in ("!", "a</w>", ",</w>", "cat</w>", "<|endoftext|>")] == [0, 320, 267, 2368, 49407]


@pytest.mark.parametrize(("zero", "pad"), [(False, 49407), (True, 0)])
def test_bos_eos_and_padding_are_stable_diffusions(zero, pad):
    tower = ClipTextEncoder(vocabulary.clip_tokenizer(pads_with_zero=zero), None)
    assert (tower.bos_id, tower.eos_id, tower.pad_id) == (49406, 49407, pad)
    framed = tower.tokenizer("a cat", padding="max_length", truncation=True)["input_ids"]  # as diffusers calls it
    assert framed == tower.pad_to_77([320, 2368])


WRITINGS = [range(0x20, 0x7F), range(0x20, 0x250), range(0x370, 0x2000), range(0x1F300, 0x1F700), range(0x20000)]


def some_texts(count):
    """Texts of letters of every writing, lowered and composed, which the package does a little otherwise."""
    chance = random.Random(5)
    written = [[chr(each) for each in some if unicodedata.category(chr(each))[0] in "LMNPSZ"] for some in WRITINGS]
    for _ in range(count):
        letters = chance.choices([*chance.choice(written[:-1]), *chance.choices(written[-1], k=20)], k=30)
        yield unicodedata.normalize("NFC", "".join(letters).lower())


def test_ids_are_those_of_another_program(token_ids):
    theirs = Tokenizer()
    texts = [*some_texts(3000), *(theirs.decode([token]).strip() for token in range(0, 49406, 7))]
    assert [text for text in texts if token_ids(text) != theirs.encode(text)] == []


def recorded():
    cases = json.loads(GOLDEN.read_text("utf-8"))["cases"]
    return [case for case in cases if case["tokenizer"] == "clip_bpe" and not any(c["fixes"] for c in case["chunks"])]


def test_chunks_of_prompts_are_a1111s(token_ids):
    tower = ClipTextEncoder(vocabulary.clip_tokenizer(pads_with_zero=False), None)
    assert len(recorded()) == 29
    for case in recorded():
        runs = Prompt.parse(case["prompt"]).fragments
        chunks = split_into_chunks(
            runs, lambda text: [(token,) for token in token_ids(text)], 267, case["comma_padding_backtrack"]
        )
        assert [tower.pad_to_77([piece.token for piece in chunk]) for chunk in chunks] == [
            chunk["tokens"] for chunk in case["chunks"]
        ], case["prompt"]


def test_it_is_written_and_read_as_any_tokenizer(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again("A lighthouse, naïve 日本")["input_ids"] == clip("A lighthouse, naïve 日本")["input_ids"]
    assert again.model_max_length == 77


def test_clips_need_not_be_in_the_file_and_a_text_encoder_of_other_tokens_needs_its_own(clip, tmp_path):
    assert vocabulary.tokenizer_metadata(clip) == {}
    assert len(vocabulary.find_tokenizer(tmp_path / "sd.safetensors", {}, 49408, pads_with_zero=False)) == 49408
    assert len(vocabulary.find_tokenizer(tmp_path / "more.safetensors", {}, 49410, pads_with_zero=True)) == 49408
    with pytest.raises(UnsupportedBase, match="512 tokens, not CLIP's 49408: put its folder tokenizer/ beside it"):
        vocabulary.find_tokenizer(tmp_path / "odd.safetensors", {}, 512, pads_with_zero=False)
