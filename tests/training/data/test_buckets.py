"""Pictures of several shapes are learned from in sizes near their own, each as often, in batches of one size."""

import pytest
import torch
from PIL import Image

import velatura
from velatura.datasets.folder import read_folder
from velatura.training.data.buckets import draw_bucket_batch, group_by_size
from velatura.training.data.cache import encode_examples, mirrored_examples


@pytest.fixture
def shapes(photos):
    """Three pictures of 80x64, and two upright ones, of which one counts twice and has a mask."""
    inner = photos / "2_tall"
    (inner / "mask").mkdir(parents=True)
    Image.new("RGB", (64, 80), "grey").save(photos / "a grey wall.png")
    Image.new("RGB", (64, 80), "black").save(inner / "a black wall.png")
    mask = Image.new("L", (64, 80), 0)
    mask.paste(255, (0, 0, 64, 40))
    mask.save(inner / "mask" / "a black wall.png")
    return photos


def test_each_picture_goes_to_the_size_nearest_to_its_own(shapes):
    found = group_by_size(read_folder(shapes), 64, "buckets")
    assert {size: len(some) for size, some in found.items()} == {(72, 56): 3, (56, 72): 3}
    assert {size: len(some) for size, some in group_by_size(read_folder(shapes), 64, "square").items()} == {(64, 64): 6}


def test_mirror_images_do_not_change_the_most_common_size(tmp_path):
    for number, (size, caption) in enumerate([((64, 64), "a left shoe")] * 3 + [((96, 48), "a house")] * 2):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption)
    examples = read_folder(tmp_path)
    plain, mirrored = (
        group_by_size(each, 64, "buckets") for each in (examples, examples + mirrored_examples(examples))
    )
    assert [len(bucket) for bucket in plain.values()] == [3, 2]
    assert [len(bucket) for bucket in mirrored.values()] == [3, 4]


def test_pictures_are_encoded_in_their_sizes_and_masks_with_them(tiny, shapes):
    cache = encode_examples(tiny, read_folder(shapes), 64, shape="buckets")
    assert sorted(each.latents.shape[2:] for each in cache.buckets) == [(14, 18), (18, 14)]  # latents of 4 pixels
    assert cache.picture_count == 6
    [masked] = [each.weights for each in cache.buckets if each.weights is not None]
    upper, lower = masked.amax(dim=(0, 1))[:8], masked.amin(dim=(0, 1))[10:]
    assert masked.shape == (3, 1, 18, 14)
    assert (upper > 1.5).all()
    assert (lower == 0).all()


@pytest.mark.parametrize("counts", [(5,), (5, 3), (1, 7, 2)])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_in_a_round_every_picture_is_seen(counts, batch_size):
    steps = sum(-(-count // batch_size) for count in counts)
    rounds = [
        [draw_bucket_batch(3, number * steps + step, counts, batch_size) for step in range(steps)] for number in (0, 1)
    ]
    for taken in rounds:
        for bucket, count in enumerate(counts):
            assert {each for place, some in taken if place == bucket for each in some} == set(range(count))
        assert all(len(some) == batch_size for _, some in taken)
    assert steps < 4 or rounds[0] != rounds[1]


def test_a_run_with_buckets_learns_and_goes_on_to_the_same_end(tiny, shapes, tmp_path):
    plan = velatura.Plan(
        steps=3, batch_size=2, pixels=32, shape="buckets", learning_rate=1e-3, snapshot_every=2, precision="float32",
        validation_pictures=2, latents="draw",
    )  # fmt: skip

    def learn(out, until=None):
        def stop(step):
            if step.done == until:
                raise KeyboardInterrupt

        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, shapes, plan, out=tmp_path / out, on_step=stop)

    whole = learn("whole")
    with pytest.raises(KeyboardInterrupt):
        learn("stopped", 1)
    assert velatura.resume(tiny, tmp_path / "stopped").file.read_bytes() == whole.file.read_bytes()
    assert all(torch.isfinite(torch.tensor(whole.losses)))
