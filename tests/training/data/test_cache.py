"""What is cached is what the base says of each picture and caption by itself."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import velatura
from velatura.datasets.folder import Example, read_dataset, read_folder
from velatura.datasets.loss_weights import loss_weights
from velatura.datasets.pictures import read_picture
from velatura.training.data.cache import encode_dataset, encode_examples
from velatura.training.data.caption_cache import CaptionCache
from velatura.training.data.fingerprint import fingerprint_examples
from velatura.training.plan import Plan
from velatura.training.validation import ValidationSet, fingerprint_data


def test_latents_and_contexts_are_those_of_each_picture_alone(tiny, photos):
    examples = read_folder(photos)
    cached = encode_examples(tiny, examples, 64)
    for index, example in enumerate(examples):
        picture = np.asarray(read_picture(example.path, 64)).astype(np.float32)
        latents = tiny.encode(torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1)
        torch.testing.assert_close(cached.latents[index], latents[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            cached.captions.encode_fixed().context[index], tiny.text.encode([example.caption])[0], rtol=1e-4, atol=1e-4
        )


def test_long_captions_are_read_to_their_end(tiny, photos):
    (photos / "0 a red ball.txt").write_text("a red ball, " * 40)
    assert encode_examples(tiny, read_folder(photos), 32).captions.encode_fixed().context.shape == (
        4,
        3 * 77,
        tiny.text.width,
    )


def test_what_no_caption_says_is_as_long_as_the_longest(tiny, photos):
    (photos / "0 a red ball.txt").write_text("a red ball, " * 40)
    nothing = encode_examples(tiny, read_folder(photos), 32).captions.encode_fixed().context[-1]
    torch.testing.assert_close(nothing, tiny.text.encode([""])[0].repeat(3, 1), rtol=1e-4, atol=1e-4)


def test_pictures_may_be_of_another_size_than_the_bases(tiny, photos):
    assert encode_examples(tiny, read_folder(photos), 32).latents.shape == (3, 4, 8, 8)


def test_mirror_images_are_learned_beside_the_pictures_with_their_masks(tiny, photos):
    folder = photos / "mask"
    folder.mkdir()
    for path in photos.glob("*.png"):
        with Image.open(path) as picture:
            mask = Image.new("L", picture.size, 0)
        mask.paste(255, (0, 0, mask.width // 4, mask.height))
        mask.save(folder / path.name)
    dataset = read_dataset(photos)
    overlay = velatura.Hypernetwork.for_base(tiny)
    plan = Plan(pixels=64, cache=False)
    cached = encode_dataset(tiny, overlay, dataset, plan.replace(flip=True))
    count = len(dataset.examples)
    assert len(cached.latents) == 2 * count
    assert cached.captions.captions[count:] == cached.captions.captions[:count]
    plain = encode_dataset(tiny, overlay, dataset, plan)
    torch.testing.assert_close(cached.latents[:count], plain.latents)
    for path in [*photos.glob("*.png"), *folder.glob("*.png")]:
        with Image.open(path) as picture:
            mirror_image = ImageOps.mirror(picture)
        mirror_image.save(path)
    mirrored = encode_dataset(tiny, overlay, read_dataset(photos), plan)
    torch.testing.assert_close(cached.latents[count:], mirrored.latents)
    torch.testing.assert_close(cached.weights[count:], mirrored.weights)
    assert not torch.equal(mirrored.weights, plain.weights)
    validation, plain_validation = (ValidationSet.from_cache(each, 8, 1000) for each in (cached, plain))
    assert torch.equal(validation.pictures, plain_validation.pictures)


@pytest.mark.filterwarnings("default")
def test_a_picture_whose_caption_names_a_side_is_not_mirrored(tiny, photos):
    (photos / "0 a red ball.txt").write_text("a red ball on the Left")
    (photos / "1 a blue box.txt").write_text("a bright leftover box")
    dataset = read_dataset(photos)
    with pytest.warns(UserWarning, match="the caption of 0 a red ball.png says left or right, so its picture is not"):
        cached = encode_dataset(tiny, velatura.Hypernetwork.for_base(tiny), dataset, Plan(pixels=32, flip=True))
    assert len(cached.latents) == 2 * len(dataset.examples) - 1


def test_a_picture_has_the_hash_that_runs_of_older_versions_stored(tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(b"a picture")
    digests = fingerprint_examples([Example(path, "a house", repeats=2)])
    assert digests == {"0.png": "be5b77466f613beda5efc5d1625d078f"}


def test_nothing_cached_asks_for_gradients(tiny, photos):
    cached = encode_examples(tiny, read_folder(photos), 32)
    assert not cached.latents.requires_grad
    assert not cached.captions.encode_fixed().context.requires_grad


def test_an_sdxl_is_told_each_caption_as_one_vector_and_nothing_where_there_is_none(xl, photos):
    examples = read_folder(photos)
    said = encode_examples(xl, examples, 64).captions.encode_fixed()
    alone = xl.text.conditioning([each.caption for each in examples])
    torch.testing.assert_close(said.pooled[:-1], alone.pooled, rtol=1e-4, atol=1e-4)
    assert said.context[-1].count_nonzero() == said.pooled[-1].count_nonzero() == 0


def test_a_mask_says_which_places_count_unless_masks_are_left_out(tiny, photos):
    examples = read_dataset(photos).examples
    assert encode_examples(tiny, examples, 32).weights is None
    (photos / "mask").mkdir()
    mask = Image.new("L", (80, 64), "black")
    mask.paste("white", (0, 0, 40, 64))
    mask.save(photos / "mask" / "1 a green ball.png")
    examples = read_dataset(photos).examples
    weights = encode_examples(tiny, examples, 32).weights
    assert weights.shape == (3, 1, 8, 8)
    assert weights[0].unique().tolist() == [1]
    assert weights[1].mean().item() == pytest.approx(1)
    assert weights[1, 0, :, 0].min() > 1.5 > weights[1, 0, :, -1].max() + 1.4
    assert encode_examples(tiny, examples, 32, masks=False).weights is None


def test_what_counts_several_times_is_weighed_and_remembered_once(tiny, photos, monkeypatch):
    counted = photos / "500_more"
    counted.mkdir()
    for path in photos.glob("*.png"):
        path.rename(counted / path.name)
    looked, read, say = [], [], CaptionCache.encode
    monkeypatch.setattr(
        "velatura.training.data.cache.loss_weights", lambda *given: looked.append(1) or loss_weights(*given)
    )
    monkeypatch.setattr(CaptionCache, "encode", lambda *given: read.append(1) or say(*given))
    dataset = read_dataset(photos)
    assert encode_examples(tiny, dataset.repeat_examples(), 32).picture_count == 1500
    assert (len(looked), len(read)) == (3, 4)
    assert sorted(fingerprint_data(dataset, Plan())) == sorted(path.name for path in counted.glob("*.png"))
