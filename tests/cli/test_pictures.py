import json
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.cli.arguments import _file_and_strength
from velatura.sampling.recipe.infotext import read_infotext
from velatura.sampling.recipe.metadata import read_image_infotext
from velatura.sampling.recipe.recipe import RECORDED_FIELDS, Recipe


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder and give back its status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = main(words)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def neon(tmp_path, hyper):
    """An overlay file in the folder where commands run."""
    velatura.save(hyper(), tmp_path / "neon.safetensors")


def test_pictures_go_into_a_folder_under_the_next_numbers(said, tmp_path):
    assert said("generate", "a house", "--steps", "1", "--count", "2", "--seed", "7") == (
        0,
        "pictures/00001.png\npictures/00002.png\n",
        "",
    )
    assert said("generate", "a house", "--steps", "1")[1] == "pictures/00003.png\n"
    assert [Recipe.from_image(tmp_path / f"pictures/0000{i}.png").seed for i in (1, 2)] == [7, 8]


def test_what_overlays_did_is_told_on_request(said, neon):
    words = ("generate", "a house", "--steps", "1", "--seed", "7", "--overlay", "neon.safetensors:0.5")
    assert said(*words)[1] == "pictures/00001.png\n"
    path, head, *widths = said(*words, "-v", "--count", "2")[1].splitlines()
    assert (path, head, widths.pop()) == ("pictures/00002.png", "  <hypernet:neon:0.5> on tiny", "pictures/00003.png")
    assert [each.split(":")[0].strip() for each in widths] == ["64", "96", "128", "192"]
    [row] = json.loads(said(*words, "--json")[1])
    assert [each["width"] for each in row["effects"][0]["widths"]] == [64, 96, 128, 192]


def test_pictures_of_several_sizes_are_told_of_in_the_order_of_their_files(said, tmp_path):
    (tmp_path / "lines.txt").write_text("a house --w 64\na boat --w 80\na fox --w 64\n")
    words = ("--prompts", "lines.txt", "--steps", "1", "--json")
    told = [(row["path"], row["recipe"]["prompt"]) for row in json.loads(said("generate", *words)[1])]
    assert told == [
        ("pictures/00001.png", "a house"),
        ("pictures/00002.png", "a boat"),
        ("pictures/00003.png", "a fox"),
    ]


def test_every_option_is_in_the_recipe(said):
    words = [
        "--negative",
        "blurry",
        "--sampler",
        "DDIM",
        "--cfg",
        "3.5",
        "--seed",
        "9",
        "--width",
        "96",
        "--height",
        "32",
    ]
    status, out, _ = said("generate", "a house", *words, "--set", "steps=2", "--out", "house.png", "--json")
    [row] = json.loads(out)
    assert status == 0
    assert row["path"] == "house.png"
    wanted = Recipe(
        prompt="a house", negative="blurry", sampler="DDIM", guidance=3.5, seed=9, width=96, height=32, steps=2
    )
    assert Recipe.model_validate(row["recipe"]).replace(base=None, base_hash=None, version=None) == wanted
    with Image.open("house.png") as image:
        assert image.size == (96, 32)


def test_a_picture_is_made_again_from_its_recipe(said, tmp_path):
    said("generate", "a house", "--steps", "2", "--seed", "3", "--out", "first.png")
    said("generate", "--recipe", "first.png", "--out", "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.usefixtures("neon")
def test_a_tag_finds_its_overlay_in_this_folder_and_an_option_tags_for_one(said, tmp_path):
    said("generate", "<hypernet:neon:0.5> a house", "--steps", "1", "--seed", "3", "--out", "tag.png")
    said("generate", "a house", "--overlay", "neon.safetensors:0.5", "--steps", "1", "--seed", "3", "--out", "file.png")
    said("generate", "a house", "--steps", "1", "--seed", "3", "--out", "bare.png")
    tagged, by_file, bare = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("tag", "file", "bare"))
    assert tagged == by_file != bare


@pytest.mark.usefixtures("neon")
def test_a_comment_does_not_swallow_an_overlay_given_by_its_file(said, tmp_path):
    said(
        "generate", "a house # draft", "--overlay", "neon.safetensors", "--steps", "1", "--seed", "3", "--out", "a.png"
    )
    said("generate", "a house", "--steps", "1", "--seed", "3", "--out", "b.png")
    assert Image.open(tmp_path / "a.png").tobytes() != Image.open(tmp_path / "b.png").tobytes()


@pytest.mark.usefixtures("neon")
def test_an_overlay_given_by_its_file_is_on_every_prompt_of_a_grid(said):
    words = ["--y", "prompt=a house,a boat", "--x", "seed=3", "--overlay", "neon.safetensors:0.5", "--steps", "1"]
    status, out, _ = said("grid", "", *words, "--json")
    [row] = json.loads(out)
    assert (status, row["path"]) == (0, "grid.png")
    _, _, fields = read_infotext(read_image_infotext(Path("grid.png")))
    assert fields["Y Values"] == "<hypernet:neon:0.5> a house, <hypernet:neon:0.5> a boat"


@pytest.mark.parametrize(
    ("words", "called"),
    [
        ("inca.pt", ("inca.pt", "1")),
        ("my runs/inca.pt:-0.6", ("my runs/inca.pt", "-0.6")),
        ("inca.pt:0@0, 0.8@0.5:end=0.9", ("inca.pt", "0@0, 0.8@0.5:end=0.9")),
        ("inca.pt:on=prompt", ("inca.pt", "on=prompt")),
        ("v1:5/inca.pt", ("v1:5/inca.pt", "1")),
        ("inca.pt:strong", ("inca.pt:strong", "1")),
    ],
)
def test_a_file_is_told_from_its_strength(words, called):
    file, strength = _file_and_strength(words)
    assert (str(file), strength) == called


@pytest.mark.usefixtures("neon")
def test_overlays_are_combined_as_asked_and_their_files_recorded(said, tmp_path):
    (tmp_path / "ink.safetensors").write_bytes((tmp_path / "neon.safetensors").read_bytes())
    prompt = "<hypernet:neon:0.5><hypernet:ink:0@0, 0.5@1> a house"
    said("generate", prompt, "--combine", "average", "--steps", "2", "--seed", "3", "--out", "house.png")
    digest = sha256((tmp_path / "neon.safetensors").read_bytes()).hexdigest()[:10]
    recipe = Recipe.from_image("house.png")
    assert recipe.combine == "average"
    assert [(each.name, each.hash) for each in recipe.overlay_hashes] == [("neon", digest), ("ink", digest)]


def test_what_is_painted_is_saved_though_the_rest_is_interrupted(said, tmp_path, monkeypatch):
    @contextmanager
    def bar_that_interrupts():
        def on_step(done, total):
            if done == 3:
                raise KeyboardInterrupt

        yield on_step

    monkeypatch.setattr("velatura.sampling.job.MAX_BATCH_LATENT_PIXELS", 1)  # batches of one picture
    monkeypatch.setattr("velatura.cli.generate.picture_bar", bar_that_interrupts)
    status, out, err = said("generate", "a", "--steps", "1", "--count", "4", "--out", "house.png")
    assert (status, out) == (130, "house-1.png\nhouse-2.png\n")  # each as soon as it is saved
    assert err.startswith("interrupted; 2 of 4 pictures are saved, from house-1.png on; drawn at random: seed ")
    seeds = [int(seed) for seed in err.rpartition("seed ")[2].split(", ")]
    assert seeds[:2] == [Recipe.from_image(f"house-{number}.png").seed for number in (1, 2)]
    assert len(seeds) == 4  # also those of the pictures that are missing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["house-1.png", "house-2.png"]


def test_a_seed_that_was_drawn_is_printed(said, tmp_path):
    status, out, err = said("generate", "a house", "--steps", "1", "--out", "house.png")
    assert (status, out) == (0, "house.png\n")
    assert err == f"drawn at random: seed {Recipe.from_image(tmp_path / 'house.png').seed}\n"


def test_of_many_seeds_the_first_is_printed(said, tmp_path):
    status, _, err = said("generate", "a house", "--steps", "1", "--count", "12", "--out", "house.png")
    first = Recipe.from_image(tmp_path / "house-1.png").seed
    assert (status, err) == (0, f"drawn at random: seed {first} and 11 more, which the pictures record\n")


def test_a_seed_that_wildcards_drew_by_is_printed(said, tmp_path):
    (tmp_path / "wildcards").mkdir()
    status, _, err = said(
        "generate", "a {red|blue} house", "--steps", "1", "--wildcards", "wildcards", "--out", "a.png"
    )
    assert (status, err) == (0, f"drawn at random: seed {Recipe.from_image(tmp_path / 'a.png').seed}\n")


def test_a_grid_draws_from_the_wildcards_of_the_library(said, tmp_path, recwarn):
    (tmp_path / "wildcards").mkdir()
    words = ("grid", "a {red|blue} {thing}", "--x", "thing=house,boat", "--steps", "1", "--seed", "1")
    assert said(*words, "--out", "a.png")[0] == 0
    recipe = Recipe.from_image(tmp_path / "a.png")
    assert recipe.prompt in {"a red house", "a blue house"}
    assert recipe.template == "a {red|blue} house"
    (tmp_path / "wildcards").rmdir()
    assert said("grid", "a {thing}", "--x", "thing=house", "--steps", "1", "--out", "b.png")[0] == 0
    assert [str(warning.message)[:14] for warning in recwarn.list] == ["this is a grid"]  # read as a recipe


def test_a_preview_is_there_while_a_picture_is_painted_and_gone_after_it(said, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("velatura.cli.saving.PREVIEW_SCALE", 2)
    save = Image.Image.save

    def spy(image, path, *words, **more):
        seen.append((str(path), image.size))
        return save(image, path, *words, **more)

    monkeypatch.setattr(Image.Image, "save", spy)
    words = ("--steps", "3", "--seed", "1", "--count", "2", "--out", "house.png", "--preview")
    assert said("generate", "a house", *words)[0] == 0
    assert [size for path, size in seen if "preview" in path] == [(64, 32)] * 3  # two pictures of 16 latents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["house-1.png", "house-2.png"]


@pytest.mark.parametrize("out", ["file", "file/house.png", "file/deep/pictures", "/proc/nowhere/house.png"])
@pytest.mark.parametrize("verb", [["generate", "a"], ["grid", "a", "--x", "seed=1"]], ids=lambda words: words[0])
def test_whether_a_place_can_be_written_to_is_found_before_the_base_is_opened(said, tmp_path, verb, out):
    (tmp_path / "file").write_text("in the way")
    status, _, err = said(*verb, "--base", "nowhere", "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot be written to" in err


@pytest.mark.parametrize("second", ["again/neon.safetensors", "again/NEON.safetensors", "a:b>c.safetensors"])
@pytest.mark.usefixtures("neon")
def test_overlay_files_that_no_tag_tells_apart_are_refused(said, tmp_path, second):
    (tmp_path / "again").mkdir()
    (tmp_path / second).write_bytes((tmp_path / "neon.safetensors").read_bytes())
    status, out, err = said("generate", "a", "--overlay", "neon.safetensors", "--overlay", second)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "rename" in err


@pytest.mark.parametrize("out", ["file/house.png", f"{'n' * 300}.png"])
def test_a_place_that_cannot_be_written_to_is_one_line(said, tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    status, printed, err = said("generate", "a", "--steps", "1", "--out", out)
    assert (status, printed, err.count("\n")) == (2, "", 1), err
    assert "choose another place" in err


@pytest.mark.usefixtures("neon")
def test_a_grid_is_one_picture(said):
    words = [
        "--x",
        "s=0,0.5",
        "--y",
        'prompt="a house, <hypernet:neon:{s}>",a boat <hypernet:neon:{s}>',
        "--steps",
        "1",
    ]
    status, out, _ = said("grid", "", *words)
    assert (status, out) == (0, "grid.png\n")
    with Image.open("grid.png") as image:
        assert image.width > 2 * 192
        assert image.height > 2 * 192


def test_a_grid_goes_through_bases_and_styles(said, tiny, tmp_path):
    velatura.save(tiny, tmp_path / "small.safetensors")
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nink,ink drawing of {prompt},colour\n")
    words = ["--x", "style=None,ink", "--y", "base=tiny,small", "--steps", "1", "--seed", "7"]
    assert said("grid", "a house", *words)[:2] == (0, "grid.png\n")
    page = (tmp_path / "grid.html").read_text("utf-8")
    assert page.count("Model: small") == 2
    assert page.count("Model: tiny") == 2 + 1  # the recipe of the whole grid is that of its first picture
    assert page.count("<pre>ink drawing of a house\nNegative prompt: colour\n") == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["generate"], "the prompt is missing"),
        (["generate", "a", "--set", "seed"], "write it as seed=8"),
        (["generate", "a", "--set", "colour=red"], "a recipe has no colour"),
        (["generate", "a", "--set", "base=sd15"], "the recipe's base records"),
        (["grid", "a", "--x", "base=tiny,sd15"], "no checkpoint is called 'sd15'"),
        (["grid", "a", "--x", "base=tiny", "--base", "tiny"], "--base tiny is given too"),
        (["grid", "a", "--x", "base_hash=1,2"], "the recipe's base_hash records"),
        (["grid", "a", "--x", "style=ink,fog"], "styles.csv cannot be read"),
        (["generate", "a", "--out", "house.bmp"], "end it in .png"),
        (["generate", "a", "--overlay", "nowhere.pt:0.5"], "nowhere.pt"),
        (["generate", "a", "--recipe", "nowhere.png"], "nowhere.png does not exist"),
        (["generate", "a", "--library", "nowhere"], "nowhere is not a folder"),
        (["generate", "a", "--base", "nowhere"], "no base is called 'nowhere'"),
        (["generate", "a", "--count", "0"], "count"),
        (["grid", "a", "--x", "s=1,2"], "write {s} into the prompt"),
        (["grid", "a", "--x", "s"], "write it as s=0,0.5,1"),
        (["grid", "a", "--x", "seed="], "has no values"),
        (["grid", "a", "--x", "steps=1,many"], "'many' is not a whole number"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(said, tmp_path, words, reason):
    status, out, err = said(*words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert reason in err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(said, tmp_path):
    (tmp_path / "house.png").write_bytes(b"dear to me")
    assert said("generate", "a", "--steps", "1", "--out", "house.png")[0] == 2
    assert (tmp_path / "house.png").read_bytes() == b"dear to me"
    assert said("generate", "a", "--steps", "1", "--out", "house.png", "--overwrite")[0] == 0


@pytest.mark.parametrize("verb", ["generate", "grid"])
def test_help_has_two_examples_and_says_defaults(said, verb):
    status, out, _ = said(verb, "--help")
    assert status == 0
    assert out.count(f"velatura {verb} ") >= 3  # usage and two examples
    assert "Euler a" in out


def test_a_file_of_prompts_makes_a_picture_of_each_line(said, tmp_path):
    (tmp_path / "prompts.txt").write_text("a house --d 7 --s 1\n# a note\na boat --n blurry --s 2 --d 8 --count 2\n")
    said("generate", "--prompts", "prompts.txt", "--out", "made", "--cfg", "5")
    recipes = [Recipe.from_image(path) for path in sorted((tmp_path / "made").glob("*.png"))]
    assert [(each.prompt, each.negative, each.steps, each.seed, each.guidance) for each in recipes] == [
        ("a house", "", 1, 7, 5.0),
        ("a boat", "blurry", 2, 8, 5.0),
        ("a boat", "blurry", 2, 9, 5.0),
    ]


def test_a_variation_keeps_its_seed_and_counts_the_other_on(said, tmp_path):
    words = ["--seed", "7", "--variation-seed", "1", "--variation-strength", "0.2", "--count", "2", "--steps", "1"]
    said("generate", "a house", *words, "--out", "made")
    recipes = [Recipe.from_image(path) for path in sorted((tmp_path / "made").glob("*.png"))]
    assert [(each.seed, each.variation_seed) for each in recipes] == [(7, 1), (7, 2)]


def test_variations_of_an_open_seed_are_of_one_picture(said, tmp_path):
    said("generate", "a house", "--variation-strength", "0.2", "--count", "2", "--steps", "1", "--out", "made")
    recipes = [Recipe.from_image(path) for path in sorted((tmp_path / "made").glob("*.png"))]
    assert len({each.seed for each in recipes}) == 1
    assert len({each.variation_seed for each in recipes}) == 2


def test_an_overlay_given_by_its_file_is_on_the_second_pass_too(said, neon, tmp_path):
    words = ["--overlay", "neon.safetensors:0.5", "--hires-scale", "1.5", "--hires-prompt", "a boat", "--steps", "1"]
    assert said("generate", "a house", *words, "--out", "it.png")[0] == 0
    assert Recipe.from_image(tmp_path / "it.png").hires_prompt == "<hypernet:neon:0.5> a boat"


def test_an_argument_in_no_utf_8_is_one_line(said):
    status, _, complaint = said("generate", "a \udcff house", "--steps", "1")
    assert status == 2
    assert complaint.count("\n") == 1
    assert "which is not a character" in complaint


def test_a_picture_is_painted_over(said, tmp_path):
    said("generate", "a house", "--seed", "7", "--steps", "2", "--out", "first.png")
    over = ["--image", "first.png", "--steps", "4", "--seed", "3"]
    said("generate", "a boat", *over, "--denoising", "0", "--out", "same.png")
    said("generate", "a boat", *over, "--denoising", "1", "--out", "other.png")
    first, same, other = (np.asarray(Image.open(f"{name}.png"), dtype=float) for name in ("first", "same", "other"))
    assert np.abs(first - same).mean() < np.abs(first - other).mean() / 2


def test_styles_are_added_by_name(said, tmp_path):
    (tmp_path / "styles.csv").write_text('name,prompt,negative_prompt\nnight,"{prompt}, at night",day\n')
    said("generate", "a house", "--style", "night", "--steps", "1", "--out", "a.png")
    recipe = Recipe.from_image("a.png")
    assert (recipe.prompt, recipe.negative) == ("a house, at night", "day")
    status, _, complaint = said("generate", "a house", "--style", "nigt", "--steps", "1", "--out", "b.png")
    assert status == 2
    assert "did you mean 'night'" in complaint


def test_a_matrix_has_a_page_with_every_recipe(said, tmp_path):
    said("grid", "a house|at night|in snow", "--matrix", "--steps", "1", "--seed", "7", "--out", "matrix.png")
    page = (tmp_path / "matrix.html").read_text()
    for prompt in ("a house", "a house, at night", "a house, in snow", "a house, at night, in snow"):
        assert f"<pre>{prompt}\nSteps: 1" in page


def test_axes_are_written_as_in_the_webui(said):
    said("grid", "a house", "--x", "seed=1-3", "--y", "cfg=1", "--steps", "1")
    status, out, _ = said("grid", "a house", "--x", "seed=1-5 (+2)", "--y", "guidance=3-7 [2]", "--steps", "1")
    assert (status, out) == (0, "grid.png\n")
    _, _, fields = read_infotext(read_image_infotext(Path("grid.png")))
    assert (fields["X Values"], fields["Y Values"]) == ("1, 3, 5", "3, 7")


def test_every_field_of_a_recipe_that_changes_the_picture_is_an_option(said):
    _, out, _ = said("generate", "--help")
    for name in set(Recipe.model_fields) - {"prompt", *RECORDED_FIELDS}:
        flag = {"guidance": "--cfg"}.get(name, "--" + name.replace("_", "-"))
        assert f"{flag} " in out
    assert "--base-hash" not in out
