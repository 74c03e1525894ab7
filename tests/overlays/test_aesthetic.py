"""Aesthetic gradients, against what their author's own program says (tests/data/trainers/aesthetic.safetensors)."""

import json
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from velatura.errors import BadOverlay, BadPrompt, UnsupportedBase, VelaturaWarning, WrongBase
from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.aesthetic_tuning import slerp
from velatura.tensors import open_tensors

GOLDEN = Path(__file__).parents[1] / "data" / "trainers" / "aesthetic.safetensors"
RATE = 1e-3  # of the golden steps


class Pipeline:
    """As much of a diffusers pipeline as an aesthetic needs."""

    def __init__(self, unet, tower):
        self.unet, self.text_encoder = unet, tower


@pytest.fixture(scope="module")
def golden():
    contents = open_tensors(GOLDEN)
    return contents.metadata, dict(contents.tensors)


@pytest.fixture
def tower(golden):
    metadata, tensors = golden
    model = CLIPTextModel(CLIPTextConfig(**json.loads(metadata["config"])["text_config"]))
    prefix = "text.text_model."
    model.load_state_dict(
        {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    )
    return model.eval().requires_grad_(False)


@pytest.fixture
def made(golden):
    tensors = golden[1]

    def make(**settings):
        return Aesthetic.from_vector(tensors["image_emb"], tensors["text.text_projection.weight"], **settings)

    return make


def encode_with(tower, ids):
    with torch.no_grad():
        return tower(input_ids=ids).last_hidden_state


@pytest.mark.filterwarnings("ignore:.*changed nothing")  # of no step
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_prompts_are_drawn_as_the_authors_program_draws_them(tiny, golden, tower, made, steps):
    tokens, expected = golden[1]["tokens"], golden[1][f"z@{steps}"]
    with velatura.attach(Pipeline(tiny.unet, tower), made(steps=steps, rate=RATE)):
        torch.testing.assert_close(encode_with(tower, tokens), expected, rtol=1e-3, atol=1e-4)


def test_golden_steps_go_somewhere(golden):
    tensors = golden[1]
    assert (tensors["z@5"] - tensors["z@0"]).norm() > 0.1 * tensors["z@0"].norm()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_whatever_the_mode_and_none_is_left(tiny, golden, tower, made, mode):
    tokens, expected = golden[1]["tokens"], golden[1]["z@1"]
    with velatura.attach(Pipeline(tiny.unet, tower), made(steps=1, rate=RATE)), mode():
        found = tower(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not found.requires_grad
    assert all(weight.grad is None and not weight.requires_grad for weight in tower.parameters())


def test_a_strength_goes_straight_between_what_was_said_and_what_became_of_it(tiny, golden, tower, made):
    tokens, plain, drawn = golden[1]["tokens"], golden[1]["z@0"], golden[1]["z@5"]
    with velatura.attach(Pipeline(tiny.unet, tower), made(steps=5, rate=RATE), 0.9):
        torch.testing.assert_close(encode_with(tower, tokens), 0.1 * plain + 0.9 * drawn, rtol=1e-3, atol=1e-4)


def test_the_tower_is_tuned_in_float32_whatever_it_computes_in(tiny, golden, tower, made):
    tokens, expected = golden[1]["tokens"], golden[1]["z@1"]
    with velatura.attach(Pipeline(tiny.unet, tower.bfloat16()), made(steps=1, rate=RATE)):
        found = encode_with(tower, tokens)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_each_text_of_a_batch_is_tuned_for_by_itself(tiny, aesthetic):
    texts = ["a red house", "a boat at night"]
    with velatura.attach(tiny, aesthetic()):
        together = tiny.text.encode(texts)
        alone = torch.cat([tiny.text.encode([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_texts_without_words_are_left_alone(tiny, aesthetic):
    before = tiny.text.encode(["", "a red house"])
    with velatura.attach(tiny, aesthetic()):
        after = tiny.text.encode(["", "a red house"])
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_prompts_are_drawn_nearer_to_the_pictures(tiny, aesthetic):
    overlay = aesthetic(steps=10)
    direction = F.normalize(overlay.vector, dim=0)

    def nearness():
        ids = torch.tensor([tiny.text.encoders[0].pad_to_77(tiny.text.token_ids("a red house"))])
        with torch.no_grad():
            pooled = tiny.text.model(input_ids=ids).pooler_output
        return float(F.normalize(pooled @ overlay.projection.T, dim=-1) @ direction)

    before = nearness()
    with velatura.attach(tiny, overlay):
        assert nearness() > before + 0.1


def test_only_prompts_are_drawn_not_negative_prompts(tiny, aesthetic):
    prompt = "a red house"
    recipe = velatura.Recipe(prompt=prompt, negative="a boat", steps=1, seed=1)
    off = velatura.generate(tiny, recipe)
    outputs = {}

    def listen(_model, _arguments, named, output):
        outputs.setdefault(tuple(named["input_ids"].flatten().tolist()), output.last_hidden_state)

    with velatura.attach(tiny, aesthetic()):
        hook = tiny.text.model.register_forward_hook(listen, with_kwargs=True)
        try:
            on = velatura.generate(tiny, recipe)
        finally:
            hook.remove()
        plain = [tiny.text.encode([text]) for text in ("a boat",)]  # by hand nobody prompt what is negative
    changed = {len(ids): value for ids, value in outputs.items()}
    assert changed
    assert on.image.tobytes() != off.image.tobytes()
    negative = [value for value in outputs.values() if torch.equal(value[0], tiny.text.encode(["a boat"])[0])]
    assert len(negative) == 1
    assert not torch.equal(plain[0], tiny.text.encode(["a boat"]))


def test_a_tag_calls_it(tiny, aesthetic):
    overlays = {"dusk": aesthetic()}
    off = velatura.generate(tiny, "a red house", steps=2, seed=1)
    tagged = velatura.generate(tiny, "a red house <aesthetic:dusk:0.9>", steps=2, seed=1, overlays=overlays)
    with velatura.attach(tiny, overlays["dusk"], 0.9):
        attached = velatura.generate(tiny, "a red house", steps=2, seed=1)
    assert tagged.image.tobytes() == attached.image.tobytes() != off.image.tobytes()
    zero = velatura.generate(tiny, "a red house <aesthetic:dusk:0>", steps=2, seed=1, overlays=overlays)
    assert zero.image.tobytes() == off.image.tobytes()


def test_a_tag_says_how_far_it_draws(tiny, aesthetic):
    overlays = {"dusk": aesthetic(steps=1), "far": aesthetic(steps=4, rate=2e-3)}
    far, asked = (
        velatura.generate(tiny, f"a red house <aesthetic:{tag}>", steps=2, seed=1, overlays=overlays)
        for tag in ("far:0.9", "dusk:0.9:steps=4:rate=2e-3")
    )
    assert far.image.tobytes() == asked.image.tobytes()
    assert overlays["dusk"].settings.steps == 1


@pytest.mark.parametrize("argument", ["steps=0.5", "steps=-1", "rate=2", "rate=x", "stepps=3", "te=0.5"])
def test_a_tag_that_cannot_be_is_pointed_at(tiny, aesthetic, argument):
    with pytest.raises(BadPrompt, match=argument.partition("=")[0] if "=" in argument else argument):
        velatura.generate(tiny, f"a red house <aesthetic:dusk:1:{argument}>", steps=1, overlays={"dusk": aesthetic()})


def test_it_draws_prompts_with_other_overlays_in_them(tiny, aesthetic, embedding, lora):
    words, look = embedding(), aesthetic()
    with velatura.attach(tiny, look):
        drawn = tiny.text.encode(["a red house"])
    for first, second in ((words, look), (look, words)):
        with velatura.attach(tiny, first), velatura.attach(tiny, second):
            both = tiny.text.encode(["a red house"])
        with velatura.attach(tiny, words):
            named = tiny.text.encode(["a red house"])
        assert not torch.equal(both, named)
        assert not torch.equal(both, drawn)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_words_are_weighed_in_its_copy_in_whichever_order_they_came(tiny, aesthetic, embedding, strength):
    word = embedding()
    still, drawing = aesthetic().replace(steps=1, rate=1e-9), aesthetic().replace(steps=2, rate=1e-2)
    with velatura.attach(tiny, word, strength):
        plain = tiny.text.encode(["a red house"])
    for look in (still, drawing):
        with velatura.attach(tiny, word, strength), velatura.attach(tiny, look):
            after = tiny.text.encode(["a red house"])
        with velatura.attach(tiny, look), velatura.attach(tiny, word, strength):
            before = tiny.text.encode(["a red house"])
        assert torch.equal(after, before)
        assert torch.allclose(after, plain, atol=1e-3) == (look is still)


def test_a_table_with_an_embedding_is_tuned_as_well(tiny, aesthetic, embedding):
    """A word that no text says changes nothing of what is drawn."""
    with velatura.attach(tiny, aesthetic()):
        expected = tiny.text.encode(["one red house"])
        unsaid = pytest.warns(velatura.VelaturaWarning, match="no text contains its name 'boat'")
        with unsaid, velatura.attach(tiny, embedding(name="boat")):
            assert torch.equal(tiny.text.encode(["one red house"]), expected)


def test_several_draw_one_after_the_other(tiny, aesthetic):
    first, second = aesthetic(), aesthetic(seed=5)
    before = tiny.text.encode(["a red house"])
    with velatura.attach(tiny, first):
        once = tiny.text.encode(["a red house"])
        with velatura.attach(tiny, second, 0.5):
            torch.testing.assert_close(
                tiny.text.encode(["a red house"]) - once, 0.5 * (alone(tiny, second) - once), rtol=1e-3, atol=1e-4
            )
    assert torch.equal(tiny.text.encode(["a red house"]), before)


def alone(base, overlay):
    """What is said with one overlay only; others must be off."""
    other = velatura.tiny()
    with velatura.attach(other, overlay):
        return other.text.encode(["a red house"])


def test_words_draw_the_look_itself(tiny, aesthetic):
    plain, to, away = aesthetic(), aesthetic(text="a boat at night"), aesthetic(text="a boat", text_negative=True)
    encodings = [alone(tiny, overlay) for overlay in (plain, to, away)]
    assert not torch.allclose(encodings[0], encodings[1])
    assert not torch.allclose(encodings[0], encodings[2])
    assert "to 'a boat at night'" in str(to.card)


def test_an_arc_keeps_its_length_and_ends_where_it_should():
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(start, end, 0.5), torch.tensor([[2.0, 2.0]]) / 2**0.5)
    torch.testing.assert_close(slerp(start, end, 0.0), start)
    torch.testing.assert_close(slerp(start, end, 1.0), end)
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_threads_say_what_they_would_alone(tiny, aesthetic):
    texts = ["a red house", "a boat at night"]

    def encode(text):
        return [tiny.text.encode([text]) for _ in range(3)]

    with velatura.attach(tiny, aesthetic()), ThreadPoolExecutor(2) as threads:
        wanted = [tiny.text.encode([text]) for text in texts]
        for expected, found in zip(wanted, threads.map(encode, texts), strict=True):
            for encoding in found:
                torch.testing.assert_close(encoding, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*a copy of its .* is made without it")
def test_a_copy_of_the_tower_is_the_plain_one(tiny, aesthetic):
    ids = torch.tensor([tiny.text.encoders[0].pad_to_77(tiny.text.token_ids("a red house"))])
    before = encode_with(tiny.text.model, ids)
    with velatura.attach(tiny, aesthetic()):
        copied = deepcopy(tiny.text.model)
        assert not torch.equal(encode_with(tiny.text.model, ids), before)
        assert torch.equal(encode_with(copied, ids), before)


def test_an_offloaded_base_says_the_same(aesthetic):
    base = velatura.tiny()
    with velatura.attach(base, aesthetic()):
        expected = base.text.encode(["a red house"])
    with pytest.warns(VelaturaWarning, match="saves nothing"):
        base.offload("cpu")
    with velatura.attach(base, aesthetic()):
        assert torch.equal(base.text.encode(["a red house"]), expected)


def test_the_first_tower_of_an_sdxl_is_drawn(xl):
    overlay = Aesthetic.from_vector(torch.randn(8), torch.randn(8, 16), steps=2, rate=RATE)
    before = xl.text.encode(["a red house"])
    with velatura.attach(xl, overlay):
        after = xl.text.encode(["a red house"])
    assert not torch.equal(after[..., :16], before[..., :16])
    assert torch.equal(after[..., 16:], before[..., 16:])


def test_a_tower_with_a_projection_of_its_own_needs_none(xl):
    overlay = Aesthetic.from_vector(torch.randn(20), steps=2, rate=RATE)
    before = xl.text.conditioning(["a red house"])
    with velatura.attach(xl, overlay):
        after = xl.text.conditioning(["a red house"])
    assert torch.equal(after.context[..., :16], before.context[..., :16])
    assert not torch.equal(after.context[..., 16:], before.context[..., 16:])
    assert not torch.equal(after.pooled, before.pooled)


def test_a_base_of_another_family_is_refused(tiny, made):
    with pytest.raises(WrongBase, match="24 features, tiny has 96"):
        velatura.attach(tiny, made())


def test_a_vector_whose_clip_is_unknown_says_what_to_do(tiny):
    with pytest.raises(BadOverlay, match="--clip"):
        velatura.attach(tiny, Aesthetic.from_vector(torch.randn(12)))


def test_a_unet_alone_has_nothing_to_draw(tiny, aesthetic):
    with pytest.raises(UnsupportedBase, match="no text encoder"):
        velatura.attach(tiny.unet, aesthetic())


@pytest.mark.parametrize(
    "settings", [{"steps": -1}, {"steps": 10**6}, {"rate": float("nan")}, {"blend": "mix"}, {"text_angle": 2.0}]
)
def test_settings_that_cannot_be_are_named(settings):
    with pytest.raises(BadOverlay, match=next(iter(settings))):
        Aesthetic.from_vector(torch.ones(8), **settings)


def test_settings_change_in_a_copy(aesthetic):
    first = aesthetic()
    second = first.replace(steps=7, blend="slerp")
    assert (first.settings.steps, second.settings.steps) == (2, 7)
    assert torch.equal(first.vector, second.vector)


def test_a_picture_records_which_file_drew_it(tiny, aesthetic, difference, tmp_path):
    velatura.save(aesthetic(), tmp_path / "dusk.safetensors")
    velatura.save(difference(text=False), tmp_path / "odd.safetensors")
    prompt = "a red house <aesthetic:dusk:0.9> <difference:odd:0.2>"
    made = velatura.generate(tiny, prompt, library=velatura.Library(tmp_path), steps=1, seed=1)
    infotext = made.recipe.infotext()
    assert "Aesthetic hashes" in infotext
    assert "Difference hashes" in infotext
    again = velatura.generate(tiny, velatura.Recipe.from_infotext(infotext), library=velatura.Library(tmp_path))
    assert again.image.tobytes() == made.image.tobytes()
