"""Every kind of overlay learns by the same trainer: it goes on bit for bit, and the base comes out as it went in."""

import pytest
import torch

import velatura
from velatura.errors import BadPlan
from velatura.training.kinds.pivotal import PivotalLora, prepare_for_training

PLAN = velatura.Plan(
    steps=4,
    batch_size=2,
    pixels=16,
    learning_rate="3e-3:2, 1e-3",
    template="subject_filewords",
    snapshot_every=2,
    precision="float32",
    validation_pictures=2,
)


def embedding(base):
    return velatura.Embedding.for_base(base, name="my-ball", vectors=2, initial="ball", seed=1)


def lora(base):
    return velatura.Lora.for_base(base, rank=2, text=True, dropout=0.1, rank_dropout=0.1, seed=1, name="my-ball")


def difference(base):
    return velatura.Difference.for_base(base, text=True, name="my-ball")


def pivotal(base):
    plain = velatura.Lora.for_base(base, rank=2, seed=1, name="balls")
    return PivotalLora.from_lora(plain, embedding(base))


MAKERS = {"embedding": embedding, "lora": lora, "difference": difference, "pivotal": pivotal}
LIGHT = [name for name in MAKERS if name != "difference"]


@pytest.fixture(params=[*LIGHT, pytest.param("difference", marks=pytest.mark.slow)])  # of which each file is 36 MB
def make(request):
    return MAKERS[request.param]


@pytest.fixture
def learn(make, tiny, photos, tmp_path):
    """Train an overlay of one kind for a moment, and break off after some steps."""

    def run(out="run", *, until=None, plan=PLAN):
        def stop(step):
            if step.done == until:
                raise KeyboardInterrupt

        return velatura.train(tiny, make(tiny), photos, plan, out=tmp_path / out, on_step=stop)

    return run


def models(base):
    return (base.unet, *(tower.model for tower in base.text.encoders))


def test_a_run_of_any_kind_that_is_broken_off_goes_on_to_the_same_end(tiny, learn, tmp_path):
    whole = learn("whole")
    for until in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            learn(f"stopped {until}", until=until)
        resumed = velatura.resume(tiny, tmp_path / f"stopped {until}")
        assert resumed.losses == whole.losses
        assert resumed.file.read_bytes() == whole.file.read_bytes()


@pytest.mark.slow
def test_an_average_of_any_kind_goes_on_too(tiny, learn, tmp_path):
    plan = PLAN.replace(ema=0.9, optimizer="lion", accumulation=2)
    whole = learn("whole", plan=plan)
    with pytest.raises(KeyboardInterrupt):
        learn("stopped", plan=plan, until=3)
    assert velatura.resume(tiny, tmp_path / "stopped").file.read_bytes() == whole.file.read_bytes()


def test_any_kind_learns_and_leaves_the_base_as_it_was(tiny, learn):
    before = [weight.clone() for model in models(tiny) for weight in model.parameters()]
    run = learn(plan=PLAN.replace(steps=6, batch_size=3))
    after = [weight for model in models(tiny) for weight in model.parameters()]
    assert all(map(torch.equal, before, after))
    assert not any(weight.requires_grad or weight.grad is not None for weight in after)
    assert run.validation_losses[6] < run.validation_losses[0]


def test_what_any_kind_learned_is_saved_as_it_ends(learn):
    run = learn()
    saved = prepare_for_training(velatura.open_overlay(run.file))
    assert saved.card == run.overlay.card
    made, read = run.overlay.state_dict(), saved.state_dict()
    assert made.keys() == read.keys()
    assert all(torch.equal(each, read[name]) for name, each in made.items())


def test_rates_of_nothing_and_something_move_one_part_only(tiny, make, learn):
    run = learn(plan=PLAN.replace(text_rate="1e-30", word_rate="1e-30", weight_decay=0))
    begun, moved = make(tiny).trainable_parameters, {"unet": 0.0, "text": 0.0, "words": 0.0}
    for name, weight in run.overlay.trainable_parameters.items():
        part = run.overlay.part_of(name)
        moved[part] = max(moved[part], (weight - begun[name]).abs().max().item())
    assert moved["text"] < 1e-20
    assert moved["words"] < 1e-20
    assert (moved["unet"] > 1e-4) == ("unet" in run.overlay.target_parts)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_any_kind_learns_on_a_base_in_half_precision(make, photos, tmp_path, dtype):
    base, plan = velatura.tiny(dtype), PLAN.replace(steps=2, learning_rate="3e-3", batch_size=1, precision="bfloat16")
    run = velatura.train(base, make(base), photos, plan, out=tmp_path / "run")
    before, after = make(base).trainable_parameters, run.overlay.trainable_parameters
    assert {each.dtype for each in after.values()} == {torch.float32}
    assert all(each.isfinite().all() for each in after.values())
    assert sum(not torch.equal(each, before[name]) for name, each in after.items()) >= len(after) / 2
    assert {tower.model.dtype for tower in base.text.encoders} == {getattr(torch, dtype)}


def test_a_word_that_no_caption_says_is_refused_before_the_run(tiny, photos, tmp_path):
    with pytest.raises(BadPlan, match=r"no caption contains 'my-ball'.*template with \[name\]"):
        velatura.train(tiny, embedding(tiny), photos, PLAN.replace(template="captions"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_without_the_word_teaches_nothing_and_stops_nothing(tiny, photos, tmp_path):
    plan = PLAN.replace(caption_dropout=0.9, seed=2)
    assert len(velatura.train(tiny, embedding(tiny), photos, plan, out=tmp_path / "run").losses) == 4


def test_a_word_that_a_lora_learned_is_in_its_file_for_prompts_that_call_it(tiny, photos, tmp_path):
    run = velatura.train(tiny, pivotal(tiny), photos, PLAN.replace(word_rate=0.1), out=tmp_path / "run")
    [vectors] = velatura.open_overlay(run.file).bundled_embeddings["my-ball"].values()
    [begun] = embedding(tiny).vectors
    assert (vectors - begun).abs().max() > 0.05
    library = velatura.Library(tmp_path / "run")
    said, unsaid = (
        velatura.generate(tiny, f"a red {word} <lora:balls:0>", seed=3, steps=2, library=library).image
        for word in ("my-ball", "my-bell")
    )
    assert said.tobytes() != unsaid.tobytes()
