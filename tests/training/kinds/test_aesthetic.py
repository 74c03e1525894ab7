"""Aesthetics from folders of pictures, as CLIP sees them."""

import torch

from velatura.formats.clip import TINY_CLIP
from velatura.tiny import tiny_pictures
from velatura.training.kinds.aesthetic import aesthetic_from


def test_the_tiny_clip_knows_its_own_styles(tiny):
    """Pictures of one style lie nearer to each other than to those of another, or nothing could be drawn to them."""
    neon, blueprint = (aesthetic_from(tiny, tiny_pictures(name)).vector for name in ("neon", "blueprint"))
    halves = aesthetic_from(tiny, tiny_pictures("neon"), steps=3)
    assert torch.equal(halves.vector, neon)
    assert halves.settings.steps == 3
    assert torch.cosine_similarity(neon, blueprint, dim=0) < 0.95


def test_a_folder_says_how_often_a_picture_counts(tiny, photos):
    plain = aesthetic_from(tiny, photos)
    often = photos / "10_more"
    often.mkdir()
    (photos / "0 a red ball.png").rename(often / "red.png")
    weighed = aesthetic_from(tiny, photos)
    assert not torch.allclose(plain.vector, weighed.vector)
    assert weighed.card.base == "tiny"


def test_another_clip_may_be_named(tiny, photos):
    named, known = aesthetic_from(tiny, photos, clip=TINY_CLIP, name="balls"), aesthetic_from(tiny, photos)
    assert torch.equal(named.vector, known.vector)
    assert named.card.name == "balls"
