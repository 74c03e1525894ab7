"""What is said of pictures follows the plan's wording, is the same for the same step, and learns where it is to."""

import pytest
import torch

import velatura
from velatura.base.text_encoder import TextEncoder
from velatura.datasets.templates import CaptionTemplate
from velatura.errors import BadPlan, UnknownName
from velatura.training.data.captions import CaptionConditioning
from velatura.training.plan import Plan

CAPTIONS = ["a red ball, on grass, at night, in rain", "a blue ball"]
NEITHER = torch.tensor([False, False])


def spoken(speech, *, captionless=NEITHER, seed=0, step=0):
    return speech.encode_batch(torch.tensor([0, 1]), captionless, seed, step).context


def test_captions_that_stay_say_what_they_do_in_a_prompt(tiny):
    speech = CaptionConditioning(tiny.text, CAPTIONS)
    assert torch.equal(spoken(speech), tiny.text.encode(CAPTIONS))
    silent = spoken(speech, captionless=torch.tensor([False, True]))
    assert torch.equal(silent[1], tiny.text.encode([""])[0])


def test_a_sentence_around_the_caption_is_said_with_the_overlays_name(tiny):
    speech = CaptionConditioning(tiny.text, CAPTIONS, CaptionTemplate(("a drawing of [filewords] by [name]",), "inca"))
    assert torch.equal(spoken(speech)[1], tiny.text.encode(["a drawing of a blue ball by inca"])[0])


def test_tags_are_shuffled_anew_at_each_step_and_alike_at_the_same_one(tiny):
    one, two = (
        CaptionConditioning(tiny.text, CAPTIONS, CaptionTemplate(shuffles_tags=True, keep_tags=1)) for _ in range(2)
    )
    assert torch.equal(spoken(one, step=3), spoken(two, step=3))
    assert not torch.equal(spoken(one, step=3), spoken(one, step=4))
    assert not torch.equal(spoken(one, step=3), spoken(one, step=3, seed=1))
    assert torch.equal(
        one.encode_for_validation(torch.tensor([0])).context, two.encode_for_validation(torch.tensor([0])).context
    )


@pytest.mark.parametrize(
    ("wording", "is_learned", "times"),
    [(CaptionTemplate(), False, 0), (CaptionTemplate(("one", "two")), False, 2), (CaptionTemplate(), True, 16)],
    ids=["told before the first step", "each once", "two pictures at each of eight steps"],
)
def test_words_are_encoded_no_more_often_than_they_must(tiny, monkeypatch, wording, is_learned, times):
    speech, counted = CaptionConditioning(tiny.text, CAPTIONS, wording, trains_text=is_learned), []
    encode = TextEncoder.encode_chunks
    monkeypatch.setattr(TextEncoder, "encode_chunks", lambda *given: counted.append(1) or encode(*given))
    for step in range(8):
        spoken(speech, step=step)
    assert len(counted) == times


def test_what_is_learned_of_words_has_gradients(tiny):
    weight = tiny.text.model.get_input_embeddings().weight
    with torch.enable_grad():
        weight.requires_grad_(True)
        try:
            learned, told = (CaptionConditioning(tiny.text, CAPTIONS, trains_text=learns) for learns in (True, False))
            assert spoken(learned).requires_grad
            assert not spoken(told).requires_grad
        finally:
            weight.requires_grad_(False)


def test_a_plan_words_captions_by_a_templates_name_or_by_sentences_of_its_own():
    assert Plan(template="subject").caption_template("my-robot").lines[0] == "a photo of [name]"
    wording = Plan(template="[name], [filewords]\n[filewords]", shuffle_tags=True, tag_dropout=0.1).caption_template(
        "inca"
    )
    assert wording == CaptionTemplate(
        ("[name], [filewords]", "[filewords]"), "inca", shuffles_tags=True, tag_dropout=0.1
    )
    with pytest.raises(UnknownName, match="did you mean 'subject'"):
        Plan(template="subjekt")
    with pytest.raises(BadPlan, match="tag_dropout is 2"):
        Plan(tag_dropout=2)


def test_a_hypernetwork_learns_from_worded_captions_and_goes_on_the_same(tiny, photos, tmp_path):
    plan = velatura.Plan(
        steps=4, batch_size=2, pixels=16, learning_rate=1e-3, template="style_filewords", shuffle_tags=True,
        caption_dropout=0.3, snapshot_every=2, precision="float32", validation_pictures=2,
    )  # fmt: skip

    def learn(out, until=None):
        def stop(step):
            if step.done == until:
                raise KeyboardInterrupt

        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, plan, out=tmp_path / out, on_step=stop)

    whole = learn("whole")
    with pytest.raises(KeyboardInterrupt):
        learn("stopped", 3)
    assert velatura.resume(tiny, tmp_path / "stopped").file.read_bytes() == whole.file.read_bytes()
