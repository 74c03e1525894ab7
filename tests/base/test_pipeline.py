"""A diffusers pipeline is a base: the same modules, the same pictures as an opened base."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

import velatura
from velatura.errors import BadFile, BadOverlay, UnsupportedBase


def make_scheduler(**changes):
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**{**betas, "clip_sample": False, "steps_offset": 1, **changes})


def make_pipeline(base, **changes):
    parts = {
        "unet": base.unet,
        "vae": base.vae,
        "text_encoder": base.text.model,
        "tokenizer": base.text.tokenizer,
        "scheduler": make_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return StableDiffusionPipeline(**parts | changes)


@pytest.fixture
def pipeline(tiny):
    return make_pipeline(tiny)


@pytest.fixture
def xl_pipeline(xl):
    first, second = xl.text.encoders
    return StableDiffusionXLPipeline(
        vae=xl.vae,
        text_encoder=first.model,
        text_encoder_2=second.model,
        tokenizer=first.tokenizer,
        tokenizer_2=second.tokenizer,
        unet=xl.unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )


def test_a_pipeline_shares_its_modules_with_the_base(pipeline, tiny):
    base = velatura.open_base(pipeline)
    assert (base.unet, base.vae, base.text.model) == (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert base.family == tiny.family
    assert base.name == "StableDiffusionPipeline"


def test_a_pipeline_makes_the_picture_of_its_base(pipeline, tiny):
    options = {"steps": 2, "seed": 7}
    expected = velatura.generate(tiny, "a red house", **options)
    assert np.array_equal(velatura.generate(pipeline, "a red house", **options).image, expected.image)


def test_a_pipeline_of_an_sdxl_encodes_as_its_base_does(xl_pipeline, xl):
    ours, theirs = velatura.open_base(xl_pipeline).text.conditioning(["a tree"]), xl.text.conditioning(["a tree"])
    assert torch.equal(ours.context, theirs.context)
    assert torch.equal(ours.pooled, theirs.pooled)


def test_the_prediction_of_a_pipeline_is_its_schedulers(tiny):
    scheduler = make_scheduler(prediction_type="v_prediction")
    assert velatura.open_base(make_pipeline(tiny, scheduler=scheduler)).family.prediction == "v_prediction"


@pytest.mark.parametrize("kind", ["Hypernetwork", "Lora", "Embedding", "Difference"])
def test_an_overlay_is_made_for_a_pipeline(pipeline, tiny, kind):
    options = {"name": "inca"} if kind == "Embedding" else {}
    made = getattr(velatura, kind).for_base(pipeline, **options)
    velatura.attach(tiny, made).detach()


def test_grids_files_and_merges_take_a_pipeline(pipeline, tmp_path, lora):
    assert velatura.grid(pipeline, velatura.Recipe(prompt="a house", steps=1), x=("seed", [1, 2])).rows
    velatura.save(pipeline, tmp_path / "tiny.safetensors")
    assert velatura.open_base(tmp_path / "tiny.safetensors").family.name == "tiny"
    assert velatura.bake(pipeline, [(lora(), 0.5)])[0].family.name == "tiny"
    assert velatura.merge(pipeline, tmp_path / "tiny.safetensors", 0.5)[0].family.name == "tiny"


def test_a_pipeline_without_a_scaled_linear_schedule_is_refused(tiny):
    with pytest.raises(UnsupportedBase, match="has the noise schedule 'linear', not 'scaled_linear'"):
        velatura.open_base(make_pipeline(tiny, scheduler=make_scheduler(beta_schedule="linear")))


def test_options_of_files_are_refused_with_a_pipeline(pipeline):
    with pytest.raises(UnsupportedBase, match="a pipeline is loaded already"):
        velatura.open_base(pipeline, dtype="float16")


def test_a_pipeline_without_a_vae_is_refused(tiny):
    with pytest.raises(UnsupportedBase, match="StableDiffusionPipeline has no vae: give a whole pipeline"):
        velatura.generate(make_pipeline(tiny, vae=None), "a house")


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (None, "base is None, not a base: give one of velatura.open_base"),
        ("sd15.safetensors", r"base is 'sd15.safetensors', not a base: open it with velatura.open_base\(PATH\)"),
        (3, "base is of type int, not a base"),
    ],
)
def test_what_is_no_base_is_answered_with_advice(value, advice):
    with pytest.raises(UnsupportedBase, match=advice):
        velatura.generate(value, "a house")


def test_an_overlay_in_the_place_of_the_base_is_answered_with_advice(tiny, hyper):
    with pytest.raises(UnsupportedBase, match="that is an overlay, and the base comes first"):
        velatura.generate(hyper(), "a house")
    with pytest.raises(UnsupportedBase, match="give the base first, and then the overlay"):
        velatura.attach(hyper(), tiny)


def test_an_overlay_is_attached_by_its_path(pipeline, hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "inca.pt")
    with velatura.attach(pipeline, tmp_path / "inca.pt", 0.8) as attachment:
        assert attachment.strength == torch.tensor(0.8)
    for attachment in velatura.attach_all(pipeline, [str(tmp_path / "inca.pt"), (tmp_path / "inca.pt", 0.5)]):
        attachment.detach()


def test_a_name_in_place_of_a_path_points_to_libraries(tiny):
    with pytest.raises(BadFile, match=r"inca does not exist: .* velatura.Library\(FOLDER\).overlay\(NAME\)"):
        velatura.attach(tiny, "inca")
    with pytest.raises(BadOverlay, match="None is not an overlay: give one, or the path of its file"):
        velatura.attach(tiny, None)


def states(pipeline):
    """Which modules are in training mode, and which weights require gradients."""
    models = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    training = [module.training for model in models for module in model.modules()]
    return training, [weight.requires_grad for model in models for weight in model.parameters()]


@pytest.fixture
def trainable(pipeline):
    """A pipeline that somebody is training: the UNet but for its first layer, in training mode."""
    pipeline.unet.train().requires_grad_(True)
    pipeline.unet.conv_in.eval().requires_grad_(False)
    yield pipeline
    pipeline.unet.eval().requires_grad_(False)


USES = {
    "generate": lambda pipeline: velatura.generate(pipeline, "a house", steps=1),
    "stream": lambda pipeline: next(velatura.generate_stream(pipeline, ["a house"], steps=1)),
    "grid": lambda pipeline: velatura.grid(pipeline, velatura.Recipe(prompt="a house", steps=1), x=("seed", [1])),
    "grid of bases": lambda pipeline: velatura.grid(
        None, velatura.Recipe(prompt="a house", steps=1), x=("base", [pipeline])
    ),
    "for_base": velatura.Lora.for_base,
    "save": lambda pipeline: velatura.save(pipeline, "base.safetensors"),
    "merge": lambda pipeline: velatura.merge(pipeline, velatura.tiny(), 0.5),
    "train": lambda pipeline: velatura.train(
        pipeline,
        velatura.Hypernetwork.for_base(pipeline, name="inca"),
        velatura.tiny_pictures("neon"),
        out="run",
        steps=1,
        pixels=16,
        batch_size=1,
        end_sheet=False,
        validation_pictures=0,
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")  # of a short training
def test_a_pipeline_that_somebody_trains_stays_trainable(trainable, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = states(trainable)
    assert any(before[0])
    assert any(before[1])
    USES[use](trainable)
    assert states(trainable) == before
    assert all(weight.grad is None for weight in trainable.unet.parameters())


REFUSALS = {
    "generate": lambda pipeline: velatura.generate(pipeline, "a house", width=65),
    "measure": lambda pipeline: velatura.measure("missing", "missing", base=pipeline),
    "study": lambda pipeline: velatura.study(pipeline, "missing", out="study", minutes=0),
    "tune": lambda pipeline: velatura.tune(pipeline, velatura.Hypernetwork.for_base(pipeline), prompts=["a house"]),
}


@pytest.mark.parametrize("use", REFUSALS)
def test_a_pipeline_stays_trainable_after_an_error(trainable, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = states(trainable)
    with pytest.raises(velatura.VelaturaError):
        REFUSALS[use](trainable)
    assert states(trainable) == before


def test_a_pipeline_stays_trainable_in_inference_mode(trainable):
    before = states(trainable)
    with torch.inference_mode():
        velatura.generate(trainable, "a house", steps=1)
    assert states(trainable) == before


def test_a_pipeline_in_training_mode_makes_the_picture_of_its_base(trainable, tiny):
    picture = velatura.generate(trainable, "a red house", steps=2, seed=7).image
    assert np.array_equal(picture, velatura.generate(tiny, "a red house", steps=2, seed=7).image)


def test_an_opened_pipeline_is_frozen(trainable):
    velatura.open_base(trainable)
    assert states(trainable) == ([False] * len(states(trainable)[0]), [False] * len(states(trainable)[1]))
