"""What is drawn at a step depends on the seed and the step alone."""

import pytest
import torch

from velatura.training.noise import derive_seed, draw_batch

SHAPE = torch.Size((4, 2, 2))


def drawn(seed=0, step=0, batch_size=4, picture_count=6):
    return draw_batch(seed, step, batch_size=batch_size, picture_count=picture_count, latent_shape=SHAPE)


def test_the_same_seed_and_step_draw_the_same_in_any_order():
    late, early = drawn(step=9), drawn(step=2)
    assert torch.equal(drawn(step=2).noise, early.noise)
    assert torch.equal(drawn(step=9).timesteps, late.timesteps)
    assert torch.equal(drawn(step=9).pictures, late.pictures)


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}])
def test_another_seed_or_step_draws_otherwise(other):
    assert not torch.equal(drawn().noise, drawn(**other).noise)


@pytest.mark.parametrize(("batch_size", "picture_count"), [(4, 6), (6, 4), (1, 5), (7, 7), (5, 1)])
def test_every_picture_is_seen_before_any_is_seen_again(batch_size, picture_count):
    steps = 3 * picture_count
    row = torch.cat(
        [drawn(step=step, batch_size=batch_size, picture_count=picture_count).pictures for step in range(steps)]
    )
    rounds = row[: len(row) // picture_count * picture_count].reshape(-1, picture_count)
    assert all(sorted(one.tolist()) == list(range(picture_count)) for one in rounds)


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_timesteps_come_one_from_each_slice_of_the_schedule(batch_size):
    timesteps = torch.stack([drawn(step=step, batch_size=batch_size).timesteps for step in range(200)])
    slices = timesteps * batch_size // 1000
    assert torch.equal(slices.sort(dim=1).values, torch.arange(batch_size).expand(200, -1))
    # 289 = 1000 / sqrt(12); the mean of 200 uniform draws lies within five of its standard errors
    assert (timesteps.float().mean(dim=0) - 499.5).abs().max() < 5 * 289 / 200**0.5


# t = (1 - u ** 3) T has its median at 1 - 0.5 ** 3 = 0.875, and its mean at 3 / 4
def test_a_bias_draws_noisy_timesteps_more_often_and_moves_nothing_else():
    def batch(bias):
        return draw_batch(0, 0, batch_size=4000, picture_count=6, latent_shape=SHAPE, timestep_bias=bias)

    biased, uniform = batch(3), batch(1)
    assert biased.timesteps.float().median() == pytest.approx(875, abs=2)
    assert biased.timesteps.float().mean() == pytest.approx(750, abs=2)
    assert biased.timesteps.max() <= 999
    assert torch.equal(biased.noise, uniform.noise)


def test_uses_of_chance_do_not_share_seeds():
    seeds = [derive_seed(seed, what, step) for seed in (0, 1, 11) for what in ("step", "round") for step in (0, 1, 11)]
    assert len(set(seeds)) == len(seeds)


def test_captions_are_left_out_by_their_share_and_move_nothing_else():
    def drawn(share):
        shape = torch.Size((4, 2, 2))
        return [
            draw_batch(3, step, batch_size=16, picture_count=5, latent_shape=shape, caption_dropout=share)
            for step in range(200)
        ]

    with_all, with_some = drawn(0.0), drawn(0.3)
    assert not any(each.captionless.any() for each in with_all)
    left_out = torch.cat([each.captionless for each in with_some]).float().mean().item()
    assert left_out == pytest.approx(0.3, abs=0.03)
    for a, b in zip(with_all, with_some, strict=True):
        assert torch.equal(a.noise, b.noise)
        assert torch.equal(a.pictures, b.pictures)
