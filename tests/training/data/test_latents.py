"""What of the autoencoder's distribution is learned is the plan's to say, and a run that goes on draws the same."""

import pytest
import torch

import velatura
from velatura.datasets.folder import read_folder
from velatura.training.data.cache import encode_examples
from velatura.training.data.encoding_cache import EncodingCache

PLAN = velatura.Plan(
    steps=4, batch_size=2, pixels=16, learning_rate="3e-3", snapshot_every=2, precision="float32", latents="draw"
)


@pytest.fixture
def learn(tiny, photos, tmp_path):
    def run(out, *, until=None, **changes):
        def stop(step):
            if step.done == until:
                raise KeyboardInterrupt

        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, PLAN.replace(**changes), out=tmp_path / out, on_step=stop)

    return run


def test_a_draw_is_anew_at_each_step_and_the_same_at_the_same(tiny, photos):
    cached = encode_examples(tiny, read_folder(photos), 32, sampling="draw")
    first, second, again = (cached.draw_latents(torch.tensor([2, 0]), 7, before) for before in (0, 2, 0))
    assert torch.equal(cached.draw_latents(torch.tensor([0]), 7, 1), first[1:])  # as another process draws it
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    away = (first - cached.latents[[2, 0]]) / cached.deviations[[2, 0]]
    assert abs(away.mean()) < 0.3
    assert 0.8 < away.std() < 1.2


@pytest.mark.parametrize("sampling", ["mean", "once"])
def test_what_is_not_drawn_is_the_same_at_each_step(tiny, photos, sampling):
    cached = encode_examples(tiny, read_folder(photos), 32, sampling=sampling, seed=7)
    rows = torch.tensor([1, 1, 0])
    assert torch.equal(cached.draw_latents(rows, 7, 0), cached.latents[rows])
    assert torch.equal(cached.draw_latents(rows, 7, 0), cached.draw_latents(rows, 8, 5))


def test_the_three_ways_train_differently(learn):
    losses = [learn(way, latents=way).losses for way in ("mean", "once", "draw")]
    assert len({tuple(each) for each in losses}) == 3


@pytest.mark.parametrize("way", ["once", "draw"])
def test_a_run_that_is_resumed_draws_what_it_would_have_drawn(tiny, learn, tmp_path, way):
    whole = learn("whole", latents=way)
    with pytest.raises(KeyboardInterrupt):
        learn("broken", latents=way, until=3)
    resumed = velatura.resume(tiny, tmp_path / "broken")
    assert resumed.losses == whole.losses
    assert resumed.file.read_bytes() == whole.file.read_bytes()


def test_without_its_cache_a_run_ends_the_same(learn, monkeypatch, tmp_path):
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "kept"))
    ways = [learn("first"), learn("second"), learn("without", cache=False)]
    assert len({tuple(each.losses) for each in ways}) == 1
    files = list((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 3 + 4  # pictures, and their captions with that of none
    for file in files:
        file.write_bytes(b"damaged")
    assert learn("third").losses == ways[0].losses


def test_nothing_is_kept_where_the_plan_says_so(learn, monkeypatch, tmp_path):
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "kept"))
    learn("run", cache=False)
    assert not (tmp_path / "kept").exists()


def test_captions_are_read_from_disk_only_where_they_say_the_same_at_each_step(tiny, photos, tmp_path):
    kept, examples = EncodingCache(tmp_path / "kept"), read_folder(photos)
    encode_examples(tiny, examples, 32, encoding_cache=kept, trains_text=True)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 3
