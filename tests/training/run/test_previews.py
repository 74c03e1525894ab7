"""Previews of several prompts and seeds, a row for each step, whatever becomes of the run."""

import pytest
from PIL import Image

import velatura
from velatura.errors import BadPlan
from velatura.sampling.generate import Picture
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.run import previews
from velatura.training.run.previews import Previews, preview_recipes

PLAN = velatura.Plan(steps=2, batch_size=1, pixels=16, precision="float32", validation_pictures=0, snapshot_every=0)
LINES = "a red ball\na blue ball"


@pytest.fixture
def learn(tiny, photos, tmp_path):
    def run(**changes):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, PLAN.replace(**changes), out=tmp_path / "run").folder

    return run


@pytest.fixture
def kept(tmp_path):
    return Previews(tmp_path / "previews", tmp_path / "previews.png", "inca")


def painted(*colors, seeds=(0,)):
    recipes = [Recipe(prompt=f"a {color} wall", seed=seed) for color in colors for seed in seeds]
    return [Picture(Image.new("RGB", (64, 64), recipe.prompt.split()[1]), recipe) for recipe in recipes]


def colors_of(sheet, cells=64):
    """The colours of a sheet of plain pictures, by how much of it they cover."""
    with Image.open(sheet) as image:
        found = {color: count for count, color in image.getcolors(2**20) if count > cells * cells}
    return found.keys() - {(255, 255, 255)}


def test_every_line_is_shown_with_every_seed():
    recipes = preview_recipes(PLAN.replace(preview_every=1, preview_prompt=LINES, preview_seeds=2, seed=5), "a caption")
    assert [(each.prompt, each.seed) for each in recipes] == [
        ("a red ball", 5),
        ("a red ball", 6),
        ("a blue ball", 5),
        ("a blue ball", 6),
    ]
    assert [each.prompt for each in preview_recipes(PLAN, "a caption")] == ["a caption"]


def test_a_line_that_would_call_another_overlay_is_refused():
    plan = PLAN.replace(preview_every=1, preview_prompt="a red ball\na ball <hypernet:other:1>")
    with pytest.raises(BadPlan, match='"a ball <hypernet:other:1>" names other overlays'):
        preview_recipes(plan, "")


def test_a_run_leaves_all_of_them_and_a_sheet(learn):
    folder = learn(preview_every=1, preview_prompt=LINES)
    names = sorted(path.name for path in (folder / "previews").iterdir())
    assert names == [f"inca-00000{step}-{place}.png" for step in (0, 1, 2) for place in (1, 2)]
    with Image.open(folder / "previews.png") as sheet:
        assert sheet.width > 2 * 192  # two pictures of 64 pixels, enlarged threefold
        assert sheet.height > 3 * 192
    assert velatura.Recipe.from_image(folder / "previews" / names[1]).prompt == "a blue ball"


def test_the_sheet_has_a_row_for_each_step_and_a_column_for_each_picture(kept):
    kept.add(painted("red", "blue"), 10)
    assert colors_of(kept.sheet) == {(255, 0, 0), (0, 0, 255)}
    kept.add(painted("lime", "black"), 20)
    assert colors_of(kept.sheet) == {(255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 0, 0)}
    assert list(kept.rows()) == [10, 20]


def test_rows_of_steps_that_were_taken_back_are_gone(kept):
    for step, color in ((10, "red"), (20, "blue"), (30, "lime")):
        kept.add(painted(color, seeds=(0, 1)), step)
    kept.remove_after(30)
    assert kept.sheet.exists()
    kept.remove_after(10)
    assert (list(kept.rows()), kept.sheet.exists()) == ([10], False)
    kept.add(painted("black", seeds=(0, 1)), 15)
    assert colors_of(kept.sheet) == {(255, 0, 0), (0, 0, 0)}


def test_a_long_run_shows_every_few_steps_and_the_last(kept, monkeypatch):
    monkeypatch.setattr(previews, "MAX_SHEET_ROWS", 2)
    for step, color in enumerate(("red", "blue", "lime", "black", "yellow")):
        kept.add(painted(color), step)
    assert colors_of(kept.sheet) == {(255, 255, 0), (0, 0, 255)}
    assert len(kept.rows()) == 5


def test_the_first_row_is_the_base_as_it_was(tiny, photos, tmp_path):
    lora = velatura.Lora.for_base(tiny, rank=1, name="inca")  # an untrained LoRA changes nothing
    plan = PLAN.replace(preview_every=2, preview_prompt="a red ball")
    folder = velatura.train(tiny, lora, photos, plan, out=tmp_path / "run").folder
    alone = velatura.generate(tiny, "a red ball", seed=PLAN.seed)
    with Image.open(folder / "previews" / "inca-000000.png") as shown:
        assert shown.tobytes() == alone.image.tobytes()


def test_a_resumed_run_ends_with_the_rows_of_an_unbroken_one(tiny, learn, photos, tmp_path):
    alone = learn(preview_every=1)
    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")

    def stop(step):
        if step.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.train(tiny, overlay, photos, PLAN.replace(preview_every=1), out=tmp_path / "broken", on_step=stop)
    (tmp_path / "broken" / "previews" / "inca-000002.png").write_bytes(b"of a time that is no more")
    resumed = velatura.resume(tiny, tmp_path / "broken").folder
    names = [sorted(path.name for path in (folder / "previews").iterdir()) for folder in (alone, resumed)]
    assert names[0] == names[1]
    assert (alone / "previews.png").read_bytes() == (resumed / "previews.png").read_bytes()
