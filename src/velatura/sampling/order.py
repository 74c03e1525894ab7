"""A recipe filled in, with all that a base makes of it before the first step, and which can be made at once."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from velatura.base.base import Base
from velatura.errors import BadRecipe
from velatura.overlays.embedding import Embedding
from velatura.prompts.prompt import Prompt
from velatura.prompts.timeline import Timing
from velatura.sampling.beginning import DENOISING, Beginning, hash_of, mask_hash_of
from velatura.sampling.calls import Called, Shelf
from velatura.sampling.checks import (
    check_clip_skip,
    check_image,
    check_second_pass,
    check_seed_size,
    warn_of_another_base,
    warn_of_idle_ensd,
    warn_of_idle_fields,
    warn_of_other_overlays,
)
from velatura.sampling.enlarging import find_upscaler
from velatura.sampling.fields import OverlayHash
from velatura.sampling.guidance import Pair
from velatura.sampling.masks import Source
from velatura.sampling.naming import Named, worded
from velatura.sampling.recipe import Recipe
from velatura.sampling.samplers import Course, Sampler, find_sampler
from velatura.sampling.settings import Settings
from velatura.sampling.sizes import SecondPass, Size, second_pass, steps_left

SEEDS = 4294967294  # how many the webui draws from
LATENT_PIXELS = 8 * 64 * 64  # of a batch: those of eight pictures of 512 x 512; the UNet sees each twice
AGAIN = 0.7  # of a first pass is painted anew where a recipe leaves it open, the webui's default


@dataclass(frozen=True)
class Pass:
    """One walk of a picture: the sampler and its levels, what is said and when, and the size in latents.

    calls: the overlays that tags call; named: the embeddings that the words name.
    """

    sampler: Sampler
    course: Course
    prompts: tuple[Prompt, Prompt]
    timing: Timing
    pair: Pair
    calls: tuple[Called, ...]
    named: tuple[Named, ...]
    size: Size

    def chunk_count(self, base: Base) -> int:
        """Chunks of its longest text."""
        called = [Named(each.overlay, each.file) for each in self.calls if isinstance(each.overlay, Embedding)]
        with worded(base, [*called, *self.named]):
            return self.pair.chunk_count(base)


class Order:
    """One picture to be made: its recipe with nothing left open, its prompts read, its overlays found."""

    def __init__(self, base: Base, recipe: Recipe, shelf: Shelf, source: Source | None = None) -> None:
        warn_of_another_base(base, recipe)
        check_clip_skip(base, recipe)
        check_seed_size(base, recipe)
        check_image(recipe, source)
        warn_of_idle_fields(recipe, source)
        self.base, self.source, self._shelf = base, source, shelf
        self.sampler = find_sampler(recipe.sampler)
        self._settings = Settings(**{name: getattr(recipe, name) for name in Settings.model_fields})
        self.size = Size(_side(base, "width", recipe.width), _side(base, "height", recipe.height))
        self.seed = secrets.randbelow(SEEDS) if recipe.seed is None else recipe.seed
        self.recipe = self._filled(recipe)
        self.passes = [self._first_pass(), *([self._second_pass()] if self.enlargement else [])]
        self.layout = self._layout()
        if recipe.ensd and not any(each.sampler.draws_more(self._settings) for each in self.passes):
            warn_of_idle_ensd(self.sampler.name)
            self.recipe = self.recipe.but(ensd=0)
        hashes = _hashes(self.passes)
        warn_of_other_overlays(recipe.overlay_hashes, hashes)
        self.recipe = self.recipe.but(overlay_hashes=hashes)
        _warn_of_unreached(self.passes)
        for each in self.passes:
            for call in each.calls:
                call.warn_if_idle(each.course.steps, guided=self.recipe.guidance != 1 or not each.pair.counts_once)

    @property
    def steps(self) -> int:
        """How many steps its passes take together; some samplers take one less than they are asked for."""
        return sum(each.course.steps for each in self.passes)

    @property
    def enlargement(self) -> SecondPass | None:
        """What the second pass makes of the first, if there is one."""
        scale, size, factor = self.recipe.hires_scale, self.recipe.hires_size, self.base.family.latent_factor
        if not scale and not size:
            return None
        enlarged = second_pass(self.size, scale or 1.0, Size(*(size or (0, 0))), factor)
        check_second_pass(enlarged.enlarged, factor)
        return enlarged

    @cached_property
    def beginning(self) -> Beginning | None:
        """What of an image it begins from, if it does."""
        return self.source and Beginning.of(self.base, self.source, self.recipe, self.size, self.seed)

    @property
    def companions(self) -> object:
        """What pictures have in common that can be made at once."""
        varies = {"prompt": "", "negative": "", "hires_prompt": "", "hires_negative": "", "overlay_hashes": ()}
        seeds = {"seed": None, "variation_seed": None, "keep_layout": "yes" if self.recipe.keep_layout else ""}
        calls = [tuple(call.how for call in each.calls) for each in self.passes]
        walks = [*self.passes, *(self.layout.passes if self.layout else ())]
        counts = [each.chunk_count(self.base) for each in walks]
        renamed = {each.hash.hash for walk in walks for each in walk.named if each.was_recorded and each.hash}
        return self.recipe.but(**varies, **seeds), tuple(calls), tuple(counts), frozenset(renamed)

    def _layout(self) -> "Order | None":
        """The picture whose layout is kept: of the same noise, with the same overlays, and another prompt."""
        if not self.recipe.keep_layout:
            return None
        for each in self.passes:
            if not each.pair.is_plain or self.recipe.skip_negative_below:
                raise BadRecipe("keep_layout goes with one prompt: leave out AND, prompt editing, skip_negative_below")
        other = Prompt.read(self.recipe.keep_layout)
        if other.tags:
            raise BadRecipe(f"{other.tags[0]} in keep_layout calls nothing: write it into the prompt")
        prompt, *again = ("".join(map(str, each.prompts[0].tags)) + self.recipe.keep_layout for each in self.passes)
        recipe = self.recipe.but(prompt=prompt, keep_layout="", hires_prompt=again[0] if again else "")
        return Order(self.base, recipe.but(keep_layout_until=0.5, base=None, base_hash=None), self._shelf, self.source)

    def _filled(self, recipe: Recipe) -> Recipe:
        """The recipe with what was left open, and what is recorded of the base and the image."""
        varies = recipe.variation_strength > 0 and recipe.variation_seed is None
        open_share = DENOISING if self.source else AGAIN if recipe.hires_scale or recipe.hires_size else None
        return recipe.but(
            sampler=self.sampler.name,
            seed=self.seed,
            variation_seed=secrets.randbelow(SEEDS) if varies else recipe.variation_seed,
            width=self.size.width,
            height=self.size.height,
            denoising=open_share if recipe.denoising is None else recipe.denoising,
            hires_upscaler=find_upscaler(recipe.hires_upscaler),
            hires_sampler=recipe.hires_sampler and find_sampler(recipe.hires_sampler).name,
            base=self.base.name,
            base_hash=self.base.hash or None,
            vae=self.base.vae_source and self.base.vae_source.name,
            vae_hash=self.base.vae_hash or None,
            image_hash=self.source and hash_of(self.source.image),
            mask_hash=self.source and mask_hash_of(self.source),
            version=f"velatura {version('velatura')}",
        )

    def _first_pass(self) -> Pass:
        begun = steps_left(self.recipe.steps, self.recipe.denoising or 0.0) if self.source else None
        course = self.sampler.course(
            *(self.base.schedule, self.recipe.steps, self._settings), begun=begun, family=self.base.family.name
        )
        timing = Timing(self.recipe.steps * self.sampler.calls_per_step, before_1_6=self.recipe.old_editing)
        return self._pass(self.sampler, course, (self.recipe.prompt, self.recipe.negative), timing, self.size)

    def _second_pass(self) -> Pass:
        assert self.enlargement
        sampler = find_sampler(self.recipe.hires_sampler) if self.recipe.hires_sampler else self.sampler
        steps = self.recipe.hires_steps or self.recipe.steps
        begun = steps_left(steps, self.recipe.denoising or 0.0, exactly=steps)
        course = sampler.course(*(self.base.schedule, steps, self._settings), begun=begun, family=self.base.family.name)
        calls = sampler.calls_per_step
        first, old = self.recipe.steps * self.sampler.calls_per_step, self.recipe.old_editing
        timing = Timing(first, second_pass=steps * calls, before_1_6=old)
        prompt, negative = self.recipe.hires_prompt or self.recipe.prompt, self.recipe.hires_negative
        factor = self.base.family.latent_factor
        size = Size(
            *(
                (side // factor - surplus) * factor
                for side, surplus in zip(self.enlargement.enlarged, self.enlargement.surplus, strict=True)
            )
        )
        return self._pass(sampler, course, (prompt, negative or self.recipe.negative), timing, size)

    def _pass(self, sampler: Sampler, course: Course, said: tuple[str, str], timing: Timing, size: Size) -> Pass:
        prompt = Prompt.read(said[0], lenient=self._shelf.lenient)
        prompts = prompt, Prompt.read_negative(said[1])
        pair = Pair.of(*prompts, timing, self.recipe.emphasis)
        factor = self.base.family.latent_factor
        recorded = self.recipe.overlay_hashes
        calls = self._shelf.calls(prompt, recorded)
        texts = (run.text for voice in pair.voices for run in voice.runs)
        named = self._shelf.dictionary.named(
            *(self.base, texts), called=[each.overlay for each in calls], recorded=recorded
        )
        size = Size(*(side // factor for side in size))
        return Pass(sampler, course, prompts, timing, pair, calls, named, size)


def batches(orders: Sequence[Order]) -> Iterator[list[Order]]:
    """Orders that can be made at once, as many as there is room for."""
    groups: dict[object, list[Order]] = {}
    for order in orders:
        groups.setdefault(order.companions, []).append(order)
    for group in groups.values():
        width, height = group[0].passes[-1].size
        at_once = max(1, LATENT_PIXELS // (height * width))
        if any(each.sampler.reads_batch or _mixes_rows(each.calls) for each in group[0].passes):
            at_once = 1
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _mixes_rows(calls: Sequence[Called]) -> bool:
    """Whether a picture would depend on what it is made together with."""
    return any(call.overlay.mixes_rows for call in calls)


def _warn_of_unreached(passes: Sequence[Pass]) -> None:
    """Warn of words that never change, be it in the pass that they stand in or in a later one that says them too."""
    timings: dict[str, list[Timing]] = {}
    read: dict[str, Prompt] = {}
    for walk in passes:
        for prompt in walk.prompts:
            timings.setdefault(prompt.text, []).append(walk.timing)
            read[prompt.text] = prompt
    for text, prompt in read.items():
        prompt.warn_of_unreached(*timings[text])


def _side(base: Base, name: str, pixels: int | None) -> int:
    """The width or height in pixels, the base's own where none is wanted."""
    factor = base.family.latent_factor
    if pixels is None:
        return base.family.default_pixels
    if pixels % factor:
        down = max(factor, pixels - pixels % factor)
        raise BadRecipe(f"the {name} is {pixels} pixels; {base.name} makes multiples of {factor}, such as {down}")
    return pixels


def _hashes(passes: Sequence[Pass]) -> tuple[OverlayHash, ...]:
    """What is recorded of the files of overlays, each once."""
    made = [each.hash for walk in passes for each in (*walk.calls, *walk.named)]
    return tuple({(each.kind, each.name.lower()): each for each in made if each}.values())
