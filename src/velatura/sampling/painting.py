"""Painting a batch: overlays on, the steps of each pass, overlays off, and the latents into pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import NoPicture
from velatura.overlays.effect import Effect
from velatura.overlays.seams import is_changed
from velatura.sampling.beginning import kept
from velatura.sampling.calls import Effects, Lead, laid_over
from velatura.sampling.enlarging import enlarged
from velatura.sampling.guidance import Guidance, Guide, Lexicon
from velatura.sampling.layout import Layout, aligned, holding
from velatura.sampling.naming import worded
from velatura.sampling.noise import Noise, Variation
from velatura.sampling.order import Order, Pass
from velatura.sampling.recipe import Recipe
from velatura.sampling.tiling import tiled

Tell = Callable[[Tensor], None]  # the latents that are guessed, (pictures, 4, height, width)


def refuse_misfits(base: Base, batch: Sequence[Order]) -> None:
    """Raise what painting a batch would raise of overlays that cannot lie over this base."""
    for number, _ in enumerate(batch[0].passes):
        walks = [order.passes[number] for order in batch]
        with _laid(base, walks, batch[0].recipe):
            pass


@torch.no_grad()
def paint(base: Base, batch: Sequence[Order], lexicon: Lexicon, tell: Tell) -> tuple[list[Image.Image], list[Effect]]:
    """Make the pictures of a batch, telling of each step; the base is as before at the end, also after an error.

    Gives what overlays did in the first pass too, and in a second one where others are called there.
    """
    recipe = batch[0].recipe
    orders = [*batch, *(order.layout for order in batch if order.layout)]
    with tiled(base, wanted=recipe.tiling), _memory_for(batch):
        latents, effects = _walked(base, orders, lexicon, tell)
        if to := batch[0].enlargement:
            start = enlarged(base, latents, to, recipe.hires_upscaler)
            latents, later = _walked(base, orders, lexicon, tell, start)
            known = {each.overlay for each in effects}
            effects += [each for each in later if each.overlay not in known]
        pictures = [_image(base, each) for each in latents[: len(batch)]]
    finished = [
        order.beginning.painted_over(picture) if order.beginning else picture
        for order, picture in zip(batch, pictures, strict=True)
    ]
    return finished, effects


@contextmanager
def _memory_for(batch: Sequence[Order]) -> Generator[None]:
    """Say in our words that a machine has no room for a picture; the CPU's allocator has no error of its own."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        largest = batch[0].enlargement
        size = largest.enlarged if largest else batch[0].size
        raise NoPicture(f"there is not enough memory for {size} pixels: make it smaller, or fewer at once") from None


def _walked(
    base: Base, orders: Sequence[Order], lexicon: Lexicon, tell: Tell, start: Tensor | None = None
) -> tuple[Tensor, list[Effect]]:
    """The latents at the end of the first pass, or of the second where there are latents to start from; effects."""
    number = 0 if start is None else 1
    walks = [order.passes[number] for order in orders]
    recipe, walk = orders[0].recipe, walks[0]
    beginnings = [each for order in orders if number == 0 and (each := order.beginning)]
    if beginnings:
        start = torch.cat([each.latents for each in beginnings])
    with _laid(base, walks, recipe) as (reach, effects):
        fraction = [0.0]
        clip_skip = recipe.clip_skip if recipe.clip_skip > 1 else None
        guidance = Guidance(recipe.guidance, recipe.skip_negative_below, clip_skip, recipe.emphasis == "Original")
        if any(is_changed(tower.model) for tower in base.text.towers):
            lexicon = Lexicon(base)  # what is said with overlays on is not for others
        guide = Guide(
            *(base, walk.course, [each.pair for each in walks], guidance),
            lexicon=lexicon,
            reach=lambda rows, negatives: reach(fraction[0], rows, negatives),
        )
        denoise = kept(guide, beginnings) if beginnings else guide
        steps = walk.sampler.sample(denoise, _noise(base, orders, number), walk.course, start)
        latents = start
        with _layout_kept(base, guide, orders) as hold:
            for step in range(walk.course.steps):
                fraction[0] = step / walk.course.steps
                hold(fraction[0])
                latents = next(steps)
                tell(guide.guessed)
        told = effects()
    assert latents is not None
    if beginnings:
        latents = kept(lambda noisy, _sigma: noisy, beginnings)(latents, latents.new_zeros(()))
    return latents, told


@contextmanager
def _laid(base: Base, walks: Sequence[Pass], recipe: Recipe) -> Generator[tuple[Lead, Effects]]:
    """Lay what the prompts of a batch call and name over a base for a while; see laid_over."""
    named, calls = [each for walk in walks for each in walk.named], [walk.calls for walk in walks]
    with worded(base, named) as of_words, laid_over(base, calls, combine=recipe.combine) as (lead, of_tags):
        yield lead, lambda: [*of_words(), *of_tags()]


def _noise(base: Base, orders: Sequence[Order], number: int) -> Noise:
    """The noise of a batch, from each picture's own seeds."""
    recipe, size = orders[0].recipe, orders[0].passes[number].size
    factor = base.family.latent_factor
    return Noise(
        [order.seed for order in orders],
        (int(base.unet.config["in_channels"]), size.height, size.width),
        base.device,
        source=recipe.noise,
        variation=Variation([order.recipe.variation_seed or 0 for order in orders], recipe.variation_strength),
        drawn_at=(recipe.seed_size[1] // factor, recipe.seed_size[0] // factor) if recipe.seed_size else None,
        later_seeds=recipe.ensd,
    )


@contextmanager
def _layout_kept(base: Base, guide: Guide, orders: Sequence[Order]) -> Generator[Callable[[float], None]]:
    """Let the first half of a batch keep the layouts of the second, for the share of the steps that is wanted."""
    count = len(orders) // 2
    if not orders[0].layout:
        yield lambda _fraction: None
        return
    tokens = [guide.tokens(place) for place in range(len(orders))]
    layout = Layout([aligned(tokens[place], tokens[count + place]) for place in range(count)])
    until = orders[0].recipe.keep_layout_until

    def hold(fraction: float) -> None:
        layout.holds = fraction < until

    with holding(base.unet, layout, parts=2 if guide.is_guided else 1):
        yield hold


def _image(base: Base, latents: Tensor) -> Image.Image:
    """Decode the latents of one picture."""
    if not latents.isfinite().all():
        raise NoPicture(
            "the latents are no numbers any more: lower the strength of overlays or the guidance, "
            "or open the base in float32"
        )
    pixels = base.decode(latents.unsqueeze(0))[0]
    # A1111 cuts the fraction off rather than rounding it
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).contiguous().cpu().numpy())
