"""The objective of diffusion: noise is mixed into clean latents, and what was mixed in is to be told."""

from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning


def denoising_loss(
    base: Base,
    latents: Tensor,
    said: Tensor | Conditioning,
    noise: Tensor,
    timesteps: Tensor,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """The mean squared error of what the base predicts of noised latents: a 0-d tensor in float32.

    latents, noise: (batch, 4, height, width) in float32; said: by the captions, or their contexts (batch, tokens,
    width) alone, see Base.predict; timesteps: (batch,). With min_snr every picture's error is weighed by its timestep,
    see min_snr_weights.
    """
    kept = base.schedule.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)]  # (batch,)
    noisy = base.schedule.add_noise(latents, noise, timesteps)
    target = noise
    if base.family.prediction == "v_prediction":  # Salimans & Ho 2022, Progressive Distillation, appendix D
        target = kept.sqrt().view(-1, 1, 1, 1) * noise - (1 - kept).sqrt().view(-1, 1, 1, 1) * latents
    errors = (base.predict(noisy, timesteps, said) - target).square().mean(dim=(1, 2, 3))  # (batch,)
    if min_snr is None:
        return errors.mean()
    weights = min_snr_weights(kept / (1 - kept), min_snr, predicts_velocity=base.family.prediction == "v_prediction")
    return (weights * errors).mean()


def min_snr_weights(snr: Tensor, gamma: float, *, predicts_velocity: bool) -> Tensor:
    """Keep the easy timesteps from ruling: min(snr, gamma) / snr where noise is predicted, / (snr + 1) for velocity.

    Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, section 3.4.
    """
    return snr.clamp(max=gamma) / (snr + 1 if predicts_velocity else snr)
