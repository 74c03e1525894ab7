"""Overlays learn on a base with two text towers as they do elsewhere."""

import pytest
import torch

import velatura
from velatura.base.conditioning import Conditioning
from velatura.datasets.folder import read_folder
from velatura.training.data.cache import encode_examples
from velatura.training.loss import denoising_errors


@pytest.mark.parametrize(("precision", "pictures"), [("float32", 1), ("bfloat16", 0)])
def test_a_hypernetwork_learns_on_an_sdxl(xl, photos, tmp_path, precision, pictures):
    plan = velatura.Plan(
        steps=3, learning_rate="1e-2", pixels=64, precision=precision, preview_every=3 * pictures, seed=1
    )
    overlay = velatura.Hypernetwork.for_base(xl, widths=[40, 64], init="xavier_normal", seed=1)
    before = [weight.clone() for weight in overlay.parameters()]
    run = velatura.train(xl, overlay, photos, plan, out=tmp_path / "run")
    assert len(run.losses) == 3
    assert run.validation_losses.keys() == run.high_noise_losses.keys() == {0, 3}
    assert all(run.high_noise_losses[step] != run.validation_losses[step] > 0 for step in (0, 3))
    assert not all(torch.equal(*each) for each in zip(before, run.overlay.parameters(), strict=True))
    assert len(list(run.folder.glob("previews/*.png"))) == 2 * pictures  # before the training and after it


@torch.no_grad()
def test_the_loss_hears_the_pooled_caption(xl, photos):
    cached = encode_examples(xl, read_folder(photos), 64)
    noise, times = torch.randn(cached.latents.shape), torch.tensor([10, 400, 900])
    right, wrong = (cached.captions.encode_fixed().select_rows(torch.tensor(rows)) for rows in ([0, 1, 2], [2, 0, 1]))
    mixed = Conditioning(right.context, wrong.pooled)
    losses = [denoising_errors(xl, cached.latents, said, noise, times).mean().item() for said in (right, mixed)]
    assert losses[0] != losses[1]
