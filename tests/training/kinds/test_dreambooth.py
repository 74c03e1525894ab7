"""DreamBooth: a whole UNet learns, beside class pictures, and comes out as a checkpoint, a folder or a difference."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

import velatura
from velatura.datasets.folder import read_dataset
from velatura.errors import BadPlan, UnknownName, VelaturaWarning
from velatura.training.kinds.class_images import count_missing_class_pictures, make_class_pictures
from velatura.training.kinds.dreambooth import apply_difference, save_dreambooth

PLAN = velatura.Plan(
    steps=3,
    batch_size=2,
    learning_rate="1e-3",
    precision="float32",
    snapshot_every=2,
    validation_pictures=0,
    cache=False,
)


@torch.no_grad()
def says(base):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    return base.predict(latents, torch.tensor(500), base.text.encode(["a red house"]))


@pytest.fixture(scope="module")
def learned(tiny, drawn, tmp_path_factory):
    overlay = velatura.Difference.for_base(tiny, text=True, name="ball")
    return velatura.train(tiny, overlay, drawn, PLAN, out=tmp_path_factory.mktemp("run") / "ball")


def test_it_learns_and_leaves_the_base_as_it_was(tiny, learned):
    before = says(tiny)
    assert torch.equal(before, says(velatura.tiny()))
    assert all(bool(each.any()) for name, each in learned.overlay.named_parameters() if "unet" in name)
    with velatura.attach(tiny, learned.overlay):
        assert not torch.equal(says(tiny), before)


def test_a_run_is_resumed_bit_for_bit(tiny, drawn, learned, tmp_path):
    def stops(step):
        if step.done == 2:
            raise KeyboardInterrupt

    overlay = velatura.Difference.for_base(tiny, text=True, name="ball")
    with pytest.raises(KeyboardInterrupt):
        velatura.train(tiny, overlay, drawn, PLAN, out=tmp_path / "ball", on_step=stops)
    resumed = velatura.resume(tiny, tmp_path / "ball").overlay.state_dict()
    for name, weight in learned.overlay.state_dict().items():
        assert torch.equal(resumed[name], weight), name


def test_checkpointing_learns_the_same(tiny, drawn, learned, tmp_path):
    overlay = velatura.Difference.for_base(tiny, text=True, name="ball")
    run = velatura.train(tiny, overlay, drawn, PLAN.replace(checkpointing=True), out=tmp_path / "ball")
    assert run.losses == pytest.approx(learned.losses, rel=1e-4)
    assert not tiny.unet.is_gradient_checkpointing


def test_a_checkpoint_does_what_the_difference_does(tiny, learned, tmp_path):
    with velatura.attach(tiny, learned.overlay):
        wanted = says(tiny)
    path = save_dreambooth("checkpoint", tiny, learned.overlay, tmp_path / "ball", dtype="float32")
    torch.testing.assert_close(says(velatura.open_base(path)), wanted, rtol=1e-5, atol=1e-5)
    path = save_dreambooth("folder", tiny, learned.overlay, tmp_path / "ball", dtype="float32")
    torch.testing.assert_close(says(velatura.open_base(path)), wanted, rtol=1e-5, atol=1e-5)
    path = save_dreambooth("difference", tiny, learned.overlay, tmp_path / "only")
    with velatura.attach(tiny, velatura.open_overlay(path)):
        assert torch.equal(says(tiny), wanted)


def test_the_folder_opens_in_diffusers(tiny, learned, tmp_path):
    path = save_dreambooth("folder", tiny, learned.overlay, tmp_path / "ball")
    pipeline = StableDiffusionPipeline.from_pretrained(path)
    merged = apply_difference(tiny, learned.overlay)
    for name, each in pipeline.unet.state_dict().items():
        assert torch.equal(each, merged.unet.state_dict()[name])


def test_another_form_is_named(tiny, learned, tmp_path):
    with pytest.raises(UnknownName, match="checkpoint"):
        save_dreambooth("chekpoint", tiny, learned.overlay, tmp_path / "ball")


def test_class_pictures_are_made_once_and_kept(tiny, photos):
    heard = []
    made = make_class_pictures(tiny, photos, "a ball", 3, steps=1, on_picture=lambda *each: heard.append(each))
    assert [path.name for path in made] == ["class-0001.png", "class-0002.png", "class-0003.png"]
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert {example.caption for example in read_dataset(photos).regularisation} == {"a ball"}
    assert velatura.Recipe.from_image(made[0]).prompt == "a ball"
    assert make_class_pictures(tiny, photos, "a ball", 3, steps=1) == []


def test_what_lacks_is_made_with_the_seed_it_had(tiny, photos):
    made = make_class_pictures(tiny, photos, "a ball", 2, steps=1)
    seed = velatura.Recipe.from_image(made[1]).seed
    made[1].unlink()
    assert count_missing_class_pictures(photos, 2) == 1
    assert make_class_pictures(tiny, photos, "a ball", 2, steps=1) == [made[1]]
    assert velatura.Recipe.from_image(made[1]).seed == seed


def test_class_pictures_of_other_words_are_warned_of(tiny, photos):
    make_class_pictures(tiny, photos, "a ball", 1, steps=1)
    with pytest.warns(VelaturaWarning, match='with the prompt "a ball": remove'):
        make_class_pictures(tiny, photos, "a cat", 1, steps=1)


@pytest.mark.parametrize("prompt", ["", "  ", "a robot <hypernet:inca:1>"])
def test_a_class_prompt_says_what_is_seen(tiny, photos, prompt):
    with pytest.raises(BadPlan, match="must say what the pictures show"):
        make_class_pictures(tiny, photos, prompt, 1)
