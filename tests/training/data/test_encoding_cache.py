"""What is kept on disk is what would be made anew, whatever happens to the folder."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import velatura
from velatura.datasets.folder import read_folder
from velatura.errors import VelaturaWarning
from velatura.prompts.prompt import Prompt
from velatura.training.data.caption_cache import CaptionCache
from velatura.training.data.encoding_cache import EncodingCache, cache_key, fingerprint_models
from velatura.training.data.latents import encode_pictures

SIZE = (32, 32)


class Made:
    """Counts how often something is made."""

    def __init__(self, value=1.0):
        self.count, self.value = 0, value

    def __call__(self):
        self.count += 1
        return {"numbers": torch.full((2, 3), self.value)}


@pytest.fixture
def encodings(tmp_path):
    return EncodingCache(tmp_path / "kept")


def files(encodings):
    return sorted(encodings._folder.glob("*/*.safetensors"))


def test_what_was_made_once_is_read_from_then_on(encodings):
    make, key = Made(), cache_key({"picture": 1}, "me")
    first, second = (encodings.get_or_make(key, make)["numbers"] for _ in range(2))
    assert make.count == 1
    assert torch.equal(first, second)
    assert EncodingCache(encodings._folder).get_or_make(key, Made(5.0))["numbers"].unique().tolist() == [1]


@pytest.mark.parametrize("other", [({"picture": 2}, "me"), ({"picture": 1}, "you"), ({"picture": "1"}, "me")])
def test_another_picture_or_model_is_another_entry(encodings, other):
    encodings.get_or_make(cache_key({"picture": 1}, "me"), Made())
    make = Made()
    encodings.get_or_make(cache_key(*other), make)
    assert make.count == 1


def test_what_has_no_key_or_folder_is_made_each_time(encodings):
    make = Made()
    for kept in (encodings, EncodingCache()):
        for _ in range(2):
            kept.get_or_make(None, make)
            EncodingCache().get_or_make("ab", make)
    assert make.count == 8
    assert not encodings._folder.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_entry_is_made_anew_and_mended(encodings, damage):
    key = cache_key({"picture": 1}, "me")
    encodings.get_or_make(key, Made())
    [file] = files(encodings)
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    file.write_bytes({"cut": whole[:-8], "flipped": flipped, "empty": b"", "other": b"no tensors at all"}[damage])
    make = Made()
    assert encodings.get_or_make(key, make)["numbers"].unique().tolist() == [1]
    assert make.count == 1
    assert file.read_bytes() == whole


def test_what_was_used_longest_ago_goes_first(encodings):
    keys = [cache_key({"picture": number}, "me") for number in range(4)]
    for age, key in enumerate(keys):
        encodings.get_or_make(key, Made())
        os.utime(encodings._folder / key[:2] / f"{key}.safetensors", (1000 + age, 1000 + age))
    encodings.get_or_make(keys[0], Made())  # used now
    size = files(encodings)[0].stat().st_size
    encodings.trim(2 * size)
    assert {file.stem for file in files(encodings)} == {keys[0], keys[3]}
    encodings.trim(0)
    assert not files(encodings)


def test_a_folder_that_cannot_be_written_is_warned_of_once_and_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    encodings, make = EncodingCache(tmp_path / "file" / "kept"), Made()
    with pytest.warns(VelaturaWarning, match="cannot be cached .*set VELATURA_CACHE to another folder") as warned:
        for_each = [encodings.get_or_make(cache_key({"picture": number}, "me"), make) for number in range(3)]
    assert len(for_each) == 3
    assert (len(warned), make.count) == (1, 3)


TOGETHER = """
import os, sys, torch
from pathlib import Path
from velatura.training.data.encoding_cache import EncodingCache, cache_key
if other := os.fork():
    another = os.fork()
encodings = EncodingCache(Path(sys.argv[1]))
for round in range(3):
    for number in range(20):
        value = torch.full((64, 64), float(number))
        found = encodings.get_or_make(cache_key({"picture": number}, "me"), lambda: {"numbers": value})
        assert torch.equal(found["numbers"], value)
    encodings.trim(200_000)
if other and another:
    assert not os.waitpid(other, 0)[1] and not os.waitpid(another, 0)[1]
"""


def test_several_processes_share_a_folder(tmp_path):
    command = [sys.executable, "-W", "error", "-c", TOGETHER, str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.name.startswith(".")]


def test_models_are_told_apart_by_their_weights_and_settings(tiny):
    before = fingerprint_models([tiny.vae])
    assert before == fingerprint_models([velatura.tiny().vae])
    assert before != fingerprint_models([tiny.text.model])
    other = velatura.tiny().vae
    with torch.no_grad():
        next(other.parameters()).add_(1e-6)
    assert fingerprint_models([other]) != before
    assert fingerprint_models([velatura.tiny().to(dtype=torch.bfloat16).vae]) != before


def test_a_model_that_something_hangs_on_has_no_fingerprint(tiny):
    tower = velatura.tiny().text.model
    tower.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert fingerprint_models([tower]) is None


def test_pictures_come_from_disk_as_they_were_encoded(tiny, photos, encodings, monkeypatch):
    examples = read_folder(photos)
    fresh = encode_pictures(tiny, examples, SIZE, EncodingCache())
    first = encode_pictures(tiny, examples, SIZE, encodings)
    monkeypatch.setattr(type(tiny), "encode_moments", None)  # from here on nothing can be encoded
    second = encode_pictures(tiny, examples[::-1], SIZE, encodings)
    assert torch.equal(fresh.values, first.values)
    assert torch.equal(first.values, second.values.flip(0))


def test_a_picture_is_known_by_its_bytes_and_size(tiny, photos, encodings):
    examples = read_folder(photos)
    before = encode_pictures(tiny, examples, SIZE, encodings).values
    Image.new("RGB", (40, 40), "pink").save(examples[0].path)
    after = encode_pictures(tiny, examples, SIZE, encodings).values
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]
    assert encode_pictures(tiny, examples, (64, 32), encodings).values.shape == (3, 4, 8, 16)


def test_a_picture_that_counts_several_times_is_encoded_once(tiny, photos, monkeypatch):
    examples, encoded, encode = read_folder(photos), [], type(tiny).encode_moments
    monkeypatch.setattr(type(tiny), "encode_moments", lambda base, pixels: encoded.append(1) or encode(base, pixels))
    assert len(encode_pictures(tiny, examples * 4, SIZE, EncodingCache()).values) == 12
    assert len(encoded) == 3


def test_latents_are_the_mean_or_one_draw_that_a_picture_keeps(tiny, photos, encodings):
    examples = read_folder(photos)
    pixels = torch.stack([_pixels(each.path) for each in examples])
    posterior = tiny.vae.encode(pixels).latent_dist
    mean = encode_pictures(tiny, examples, SIZE, encodings)
    scale = tiny.family.scaling_factor
    torch.testing.assert_close(mean.values, posterior.mean * scale, rtol=1e-4, atol=1e-4)
    once = encode_pictures(tiny, examples, SIZE, encodings, sampling="once", seed=3)
    again = encode_pictures(tiny, examples[1:], SIZE, EncodingCache(), sampling="once", seed=3)
    assert torch.equal(once.values[1:], again.values)
    assert not torch.equal(
        once.values, encode_pictures(tiny, examples, SIZE, encodings, sampling="once", seed=4).values
    )
    drawn = (once.values - mean.values) / (posterior.std * scale)
    assert abs(drawn.mean()) < 0.2
    assert 0.8 < drawn.std() < 1.2
    anew = encode_pictures(tiny, examples, SIZE, encodings, sampling="draw")
    assert torch.equal(anew.values, mean.values)
    torch.testing.assert_close(anew.deviations, posterior.std * scale, rtol=1e-4, atol=1e-4)


def _pixels(path):
    """By hand: the middle square, brought down."""
    image = Image.open(path).crop((8, 0, 72, 64)).resize(SIZE, Image.Resampling.LANCZOS)
    return torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_texts_come_from_disk_as_they_were_said(which, encodings, request, monkeypatch):
    base = request.getfixturevalue(which)
    prompts = [Prompt(text, text) for text in ("a red ball", "")]
    plain = [CaptionCache(base.text).encode(each, 2) for each in prompts]
    first = [CaptionCache(base.text, encodings).encode(each, 2) for each in prompts]
    monkeypatch.setattr("velatura.training.data.caption_cache.encode_prompts", None)
    second = [CaptionCache(base.text, encodings).encode(each, 2) for each in prompts]
    for a, b, c in zip(plain, first, second, strict=True):
        assert torch.equal(a.context, b.context)
        assert torch.equal(b.context, c.context)
        assert (a.pooled is None) == (c.pooled is None)
        assert a.pooled is None or torch.equal(a.pooled, c.pooled)


def test_a_text_is_known_by_its_tokens_and_the_room_it_fills(tiny, encodings):
    texts = CaptionCache(tiny.text, encodings)
    for words, count in (("a red ball", 1), ("a red  ball", 1), ("a red ball", 2), ("a blue ball", 1)):
        texts.encode(Prompt(words, words), count)
    assert len(files(encodings)) == 3
