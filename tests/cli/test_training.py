"""The verb `train` from the command line: the plan first, then the run, then where it is."""

import re
import shlex
import shutil

import pytest
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.tiny import DATA_FOLDER
from velatura.training.run.recorded_base import RecordedBase
from velatura.training.run.verdict import command_line

BRIEF = ("--steps", "2", "--batch", "1", "--pixels", "32", "--precision", "float32")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty working folder with somebody's photos in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photos" / "a red wall.png")
    return tmp_path


def rows(text):
    """The plan as it was printed: every label with its value."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("try:"))


def test_a_dry_run_prints_the_plan_and_writes_nothing(desk, capsys):
    assert main(["train", "hypernet", "photos", "--rate", "5e-5:100, 5e-6", "--steps", "200", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "rate" in said
    assert "5e-5:100, 5e-6" in said
    assert rows(said)["steps"] == "200"
    assert re.fullmatch(r"about \d+ (s|minutes) and \d\.\d GiB of memory", rows(said)["takes"].strip())
    assert [path.name for path in desk.iterdir()] == ["photos"]


@pytest.mark.filterwarnings("default::velatura.VelaturaWarning")
def test_a_rate_that_ends_early_is_warned_of_and_the_plan_shows_the_true_steps(desk, capsys):
    assert main(["train", "hypernet", "photos", "--rate", "5e-5:100", "--steps", "2000", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert rows(said.out)["steps"].startswith("100, where the rate ends")
    assert said.err.startswith("warning: ")
    assert said.err.count("\n") == 1


def test_the_plan_says_how_many_captions_are_file_names(desk, capsys):
    Image.new("RGB", (40, 40), "blue").save(desk / "photos" / "IMG_1234.png")
    (desk / "photos" / "IMG_1234.txt").write_text("a blue wall")
    assert main(["train", "hypernet", "photos", "--dry-run"]) == 0
    assert rows(capsys.readouterr().out)["captions"].strip() == "from file names: 1 (a red wall.png)"


def test_all_pictures_without_a_caption_are_named_at_once_before_the_base_is_opened(desk, capsys, monkeypatch):
    for number in range(12):
        Image.new("RGB", (40, 40), "blue").save(desk / "photos" / f"IMG_{number:04}.png")
    monkeypatch.setattr("velatura.cli.train.session.open_base", None)
    assert main(["train", "hypernet", "photos", "--dry-run"]) == 2
    complaint = capsys.readouterr().err
    assert "12 pictures in photos have no caption (IMG_0000.png, IMG_0001.png, " in complaint
    assert "IMG_0009.png and 2 more)" in complaint
    assert "velatura dataset caption photos" in complaint


def test_a_plan_of_another_run_is_followed_and_options_change_it(desk, capsys):
    plan = velatura.Plan(steps=7, learning_rate="3e-4", batch_size=1, pixels=32, seed=5, cache=False, preview_every=4)
    (desk / "old").mkdir()
    (desk / "old" / "plan.json").write_text(plan.model_dump_json())
    assert velatura.Plan.from_file(desk / "old") == velatura.Plan.from_file(desk / "old" / "plan.json") == plan
    for given in ("old", "old/plan.json"):
        assert main(["train", "hypernet", "photos", "--plan", given, "--steps", "6", "--dry-run"]) == 0
        said = {label: text.split()[0] for label, text in rows(capsys.readouterr().out).items()}
        fields = ("steps", "learning_rate", "batch_size", "seed", "cache", "preview_every", "pixels")
        assert [said[field] for field in fields] == ["6", "3e-4", "1", "5", "False", "4", "32"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "plan.json"),
        ("{", "is not JSON"),
        ("[]", "is not a plan"),
        ('{"steps": 0}', "the plan's steps is 0"),
        ('{"epochs": 4}', "velatura calls it steps"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_before_the_base_is_opened(desk, capsys, monkeypatch, content, complaint):
    if content is not None:
        (desk / "plan.json").write_text(content)
    monkeypatch.setattr("velatura.cli.train.session.open_base", None)
    assert main(["train", "hypernet", "photos", "--plan", "plan.json", "--dry-run"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_plan_and_a_purpose_are_not_both_followed(desk, capsys):
    (desk / "plan.json").write_text('{"steps": 2}')
    assert main(["train", "hypernet", "photos", "--plan", "plan.json", "--for", "subject", "--dry-run"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_bundled_set_is_trained_on_by_its_name(desk, capsys):
    assert main(["train", "hypernet", "neon", "--dry-run"]) == 0
    said = rows(capsys.readouterr().out)
    assert said["folder"].startswith(f"{velatura.tiny_pictures('neon')}, 16 pictures")
    assert said["out"].strip() == "runs/neon"
    shutil.copytree("photos", "neon")
    assert main(["train", "hypernet", "neon", "--dry-run"]) == 0
    assert rows(capsys.readouterr().out)["folder"].strip() == "neon, 1 picture"


@pytest.mark.parametrize("words", [["train", "lora"], ["train", "aesthetic"], ["dataset", "check"]])
def test_a_name_that_is_neither_folder_nor_bundled_set_is_answered_with_the_sets(desk, capsys, words):
    assert main([*words, "neno"]) == 2
    assert "neno does not exist (did you mean neon?): name a folder of pictures" in (
        complaint := capsys.readouterr().err
    )
    assert "blueprint, neon, robot" in complaint


def test_class_pictures_are_never_written_into_a_bundled_set(desk, capsys):
    assert main(["train", "dreambooth", "robot", "--class-prompt", "a toy", *BRIEF]) == 2
    assert "class pictures cannot be kept in the bundled set robot" in capsys.readouterr().err


def test_a_dry_run_says_every_field_once_and_what_it_means(desk, capsys):
    assert main(["train", "hypernet", "photos", "--no-cache", "--set", "gradient_norm=none", "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [words[0] for words in lines if words[0] in velatura.Plan.model_fields]
    assert sorted(names) == sorted(velatura.Plan.model_fields)
    assert names[:4] == ["steps", "learning_rate", "optimizer", "batch_size"]
    said = {words[0]: words[1:] for words in lines}
    assert (said["cache"][0], said["gradient_norm"][0]) == ("False", "none")
    assert said["warmup"] == ["0", "steps", "over", "which", "the", "rate", "rises", "from", "0"]


def test_a_run_says_what_it_takes_and_only_what_is_not_as_always(desk, capsys):
    assert main(["train", "hypernet", "photos", "--out", "run", "--min-snr", "5", *BRIEF]) == 0
    said = rows(capsys.readouterr().out)
    assert said["min_snr"].startswith("5.0")
    assert said["takes"].startswith("about ")
    assert not {"huber_threshold", "tensorboard"} & said.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "validation_folder=nowhere"], "nowhere does not exist"),
        (["--set", "validation_folder=photos"], "is in the training folder and in the validation folder"),
        (["--set", "zero_terminal_snr=true"], "set it to false"),
        (["--preview-every", "1", "--preview", "a <lora:x:1>"], "without tags"),
        (["--set", "a1111=true", "--optimizer", "prodigy", "--rate", "1"], "a1111"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(desk, capsys, words, said):
    assert main(["train", "hypernet", "photos", *words, "--dry-run", *BRIEF]) == 2
    complaint = capsys.readouterr().err
    assert (said in complaint, complaint.count("\n")) == (True, 1)


@pytest.mark.filterwarnings("default::velatura.VelaturaWarning")
@pytest.mark.parametrize("stop", [["--dry-run"], []])
def test_what_lies_beyond_the_last_step_is_warned_of_once(desk, capsys, stop):
    words = ["--rate", "1e-3:5, 1e-4:9", "--preview-every", "3", "--snapshot-every", "7", *stop]
    assert main(["train", "hypernet", "photos", "--out", "run", *BRIEF, *words]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert [line.split()[1] for line in warned] == ["preview_every", "snapshot_every", '"1e-4:9"']


@pytest.mark.parametrize(("flip", "seen"), [("false", "picture 2"), ("true", "picture and each mirror image 1")])
def test_mirror_images_are_seen_too(desk, capsys, flip, seen):
    assert main(["train", "hypernet", "photos", "--dry-run", *BRIEF, "--set", f"flip={flip}"]) == 0
    assert rows(capsys.readouterr().out)["seen"] == f"each {seen} times"


def test_pictures_are_seen_by_all_processes(desk, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", "hypernet", "photos", "--dry-run", *BRIEF, "--set", "flip=false"]) == 0
    said = capsys.readouterr().out
    assert rows(said)["seen"] == "each picture 8 times"
    assert rows(said)["processes"].startswith("4, ")


def test_what_is_not_said_is_the_presets(desk, capsys):
    assert main(["train", "hypernet", "photos", "--steps", "7", "--dry-run"]) == 0
    said, preset = rows(capsys.readouterr().out), velatura.Plan.preset("hypernet", "tiny")
    assert (said["steps"], said["batch_size"].split()[0]) == ("7", f"{preset.batch_size}")


def test_a_run_is_called_by_the_folder_unless_it_is_named(desk, capsys):
    assert main(["train", "hypernet", "photos", *BRIEF]) == 0
    assert "runs/photos/photos.safetensors: hypernet" in capsys.readouterr().out
    assert main(["train", "hypernet", "photos", "--name", "inca", "--out", "mine", *BRIEF]) == 0
    assert velatura.open_overlay(desk / "mine" / "inca.safetensors").card.name == "inca"


@pytest.mark.parametrize("name", ["../../mine", "/mine", "mine\x1b[31m/.."])
def test_a_name_does_not_lead_out_of_the_runs(desk, capsys, name):
    assert main(["train", "hypernet", "photos", "--name", name, "--dry-run"]) == 0
    assert re.fullmatch(r"runs/\w+", rows(capsys.readouterr().out)["out"].strip())


def test_a_folder_that_holds_something_is_refused_by_a_dry_run_too(desk, capsys):
    assert main(["train", "hypernet", "photos", "--out", "photos", "--dry-run"]) == 2
    assert "photos already exists; name another folder" in capsys.readouterr().err


def test_a_command_to_copy_means_no_more_than_it_says():
    caption, place = 'a "red" wall; $(rm -rf ~) `x`\n it\'s\x1b[31m\u202e', "my runs/$HOME"
    said = command_line("velatura", "generate", caption, "--library", place)
    assert said.isprintable()
    assert shlex.split(said) == [
        *("velatura", "generate", 'a "red" wall; $(rm -rf ~) `x` it\'s[31m', "--library", "my runs/$HOME")
    ]


def test_the_structure_is_as_asked_for(desk):
    words = ["--layers", "1,1.5,2,1", "--activation", "mish", "--layer-norm", "--dropout", "0.1", "--out", "run"]
    assert main(["train", "hypernet", "photos", *words, *BRIEF]) == 0
    structure = velatura.open_overlay(desk / "run" / "photos.safetensors").structure
    assert (structure.layers, structure.activation) == ((1, 1.5, 2, 1), "mish")
    assert structure.layer_norm
    assert structure.dropout == (0, 0.1, 0.1, 0)


def test_what_is_seldom_chosen_can_be_chosen_too(desk):
    words = ["--layers", "1,2,2,1", "--dropout", "0.1", "--no-last-layer-dropout", "--activate-output"]
    chosen = ["--init", "kaiming_uniform", "--widths", "96,64", "--out", "run"]
    assert main(["train", "hypernet", "photos", *words, *chosen, *BRIEF]) == 0
    structure = velatura.open_overlay(desk / "run" / "photos.safetensors").structure
    assert (structure.widths, structure.init) == ((96, 64), "kaiming_uniform")
    assert structure.activate_output
    assert structure.dropout == (0, 0.1, 0, 0)


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ("768", "not of 768, which are those of SD1"),
        ("96,768", "its networks for 768 have no effect here"),
        ("96,96", "hold a width twice"),
        ("96;64", 'write "768,320"'),
        ("9.6", 'write "768,320"'),
        ("0", "greater than or equal to 1"),
    ],
)
@pytest.mark.filterwarnings("default::velatura.VelaturaWarning")
def test_widths_that_cannot_be_are_said_before_the_plan(desk, capsys, widths, said):
    outcome = main(["train", "hypernet", "photos", "--widths", widths, "--dry-run"])
    heard = capsys.readouterr()
    assert said in heard.err
    assert heard.err.count("\n") == 1
    assert outcome == (0 if "no effect here" in said else 2)


@pytest.mark.parametrize(
    "words",
    [["--layers", "1,two,1"], ["--init", "zeros"], ["--steps", "0"], ["--precision", "int4"]],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_leaves_nothing(desk, capsys, words):
    assert main(["train", "hypernet", "photos", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in desk.iterdir()] == ["photos"]


def test_widths_of_another_family_leave_no_run_behind(desk, capsys):
    assert main(["train", "hypernet", "photos", "--widths", "768", *BRIEF]) == 2
    assert "which are those of SD1" in capsys.readouterr().err
    assert [path.name for path in desk.iterdir()] == ["photos"]


def test_help_is_grouped_and_has_two_examples(capsys):
    main(["train", "hypernet", "--help"])
    said = capsys.readouterr().out
    assert said.count("velatura train hypernet photos/") == 2
    for panel in ("Overlay and base", "Training steps", "Output files"):
        assert panel in said


def test_a_broken_picture_is_said_before_the_plan(tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(velatura.tiny_pictures("robot"), folder)
    whole = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(whole[: len(whole) // 2])
    assert main(["train", "hypernet", str(folder), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "02.png" in said.err
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_stopped_is_resumed_by_its_folder(desk, capsys, monkeypatch):
    words = ["train", "hypernet", "photos", "--name", "inca", *BRIEF]
    train = velatura.train

    def stopping(*given, on_step, **options):
        def stop(step):
            raise KeyboardInterrupt

        return train(*given, on_step=stop, **options)

    with monkeypatch.context() as stopped:
        stopped.setattr(velatura, "train", stopping)
        assert main(words) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "continue with: velatura resume runs/inca" in said
    assert main(["resume", "runs/inca"]) == 0
    assert capsys.readouterr().out.startswith("runs/inca/inca.safetensors: hypernet")
    assert main([*words, "--out", "whole"]) == 0
    finals = [(desk / run / "inca.safetensors").read_bytes() for run in ("runs/inca", "whole")]
    assert finals[0] == finals[1]
    assert main(["resume", "runs/inca"]) == 2
    assert "there is nothing to resume" in capsys.readouterr().err


def test_a_run_on_a_base_that_was_named_by_its_path_finds_it_again(desk, capsys):
    shutil.copytree(DATA_FOLDER / "tiny", desk / "my base")

    def stop(step):
        raise KeyboardInterrupt

    base, overlay = velatura.open_base("my base", device="cpu"), velatura.Hypernetwork.for_base(velatura.tiny(), seed=1)
    for out in ("stopped", "moved"):
        with pytest.raises(KeyboardInterrupt):
            velatura.train(base, overlay, "photos", velatura.Plan(steps=2, pixels=32), out=out, on_step=stop)
    assert RecordedBase.of_run("stopped").location == str(desk / "my base")
    assert main(["resume", "stopped"]) == 0
    shutil.rmtree(desk / "my base")
    assert main(["resume", "moved"]) == 2
    assert "my base" in capsys.readouterr().err


def test_every_field_of_a_plan_can_be_set(desk, capsys):
    words = ["--for", "subject", "--optimizer", "lion", "--schedule", "cosine", "--warmup", "5", "--set", "ema=0.99"]
    assert main(["train", "hypernet", "photos", *words, "--pixels", "32", "--batch", "1", "--dry-run"]) == 0
    said = rows(capsys.readouterr().out)
    wanted = {"optimizer": "lion", "schedule": "cosine", "warmup": "5", "ema": "0.99"}
    assert {name: said[name].split()[0] for name in wanted} == wanted
    assert said["steps"] == str(velatura.Plan.preset("hypernet", "tiny", "subject").steps)


@pytest.mark.parametrize(
    ("word", "said"), [("ema", "has no field and value"), ("ema=2", "less than 1"), ("speed=9", "a plan has no speed")]
)
def test_what_is_set_wrongly_is_one_line(desk, capsys, word, said):
    assert main(["train", "hypernet", "photos", "--set", word]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["embedding", "lora", "dreambooth"])
def test_any_kind_is_trained_from_the_command_line_and_called_as_it_is_said(desk, capsys, kind):
    words = ["train", kind, "photos", "--name", "my-wall", "--for", "subject", "--out", "run", *BRIEF]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert rows(said)["template"].split()[0] == "subject_filewords"
    called = shlex.split(said.splitlines()[-1].removeprefix("try:"))
    assert main([*called[1:], "--steps", "1", "--out", "picture.png"]) == 0
    assert (desk / "picture.png").exists()


def test_sentences_of_a_file_are_kept_in_the_plan(desk, capsys):
    (desk / "mine.txt").write_text("a drawing of [filewords]\n[filewords] by [name]\n")
    assert (
        main(["train", "hypernet", "photos", "--template", "mine.txt", "--shuffle-tags", "--out", "run", *BRIEF]) == 0
    )
    plan = velatura.Plan.model_validate_json((desk / "run" / "plan.json").read_text())
    assert plan.template == "a drawing of [filewords]\n[filewords] by [name]"
    assert plan.shuffle_tags
    assert main(["train", "hypernet", "photos", "--template", "mein", "--dry-run"]) == 2
    assert "no template is called 'mein'" in capsys.readouterr().err


def test_a_lora_is_as_asked_for(desk, capsys):
    words = [
        "--rank",
        "2",
        "--alpha",
        "1",
        "--algorithm",
        "loha",
        "--targets",
        "linear",
        "--text",
        "--text-rate",
        "1e-5",
    ]
    assert main(["train", "lora", "photos", *words, "--dropout", "0.1", "--out", "run", *BRIEF]) == 0
    overlay = velatura.open_overlay(desk / "run" / "photos.safetensors")
    assert overlay.target_parts == {"text", "unet"}
    assert overlay.card.outline.startswith("loha rank 2")
    assert rows(capsys.readouterr().out)["text_rate"].split()[0] == "1e-5"
    assert main(["train", "lora", "photos", "--algorithm", "lora2", "--dry-run"]) == 2
    assert "algorithm is called 'lora2'" in capsys.readouterr().err


def test_an_optimizer_that_finds_its_rate_takes_no_rates_of_parts(desk, capsys):
    words = ["train", "lora", "photos", "--optimizer", "prodigy", "--rate", "1", "--dry-run", *BRIEF]
    assert main(words) == 0
    assert rows(capsys.readouterr().out)["text_rate"].startswith("none ")
    assert main([*words, "--text", "--text-rate", "1e-5"]) == 2
    assert "Prodigy finds one rate for all" in capsys.readouterr().err


def test_a_lora_takes_along_the_word_that_it_learned(desk, capsys):
    words = ["--rank", "2", "--word", "my-wall", "--vectors", "2", "--initial", "wall", "--word-rate", "0.01"]
    assert main(["train", "lora", "photos", *words, "--out", "run", *BRIEF]) == 0
    assert "my-wall" in capsys.readouterr().out.splitlines()[-1]
    assert [*velatura.open_overlay(desk / "run" / "photos.safetensors").bundled_embeddings] == ["my-wall"]
    assert main(["train", "lora", "photos", *words, "--template", "captions", *BRIEF]) == 2
    assert "no caption contains 'my-wall'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["checkpoint", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_dreambooth_leaves_a_whole_base_where_asked(desk, capsys, form):
    words = ["--class-prompt", "a wall", "--class-pictures", "1", "--as", form, "--name", "mine", "--out", "run"]
    assert main(["train", "dreambooth", "photos", *words, "--rate", "1e-4", *BRIEF]) == 0
    assert len(list((desk / "photos" / "reg").glob("*.png"))) == 1
    said = capsys.readouterr().out
    called = shlex.split(said.splitlines()[-1].removeprefix("try:"))
    base = velatura.open_base(desk / called[-1], device="cpu")
    learned = velatura.open_overlay(desk / "run" / "mine.safetensors")
    [name, *_] = [name for name in learned.trainable_parameters if name.endswith("mid_block_attentions_0_proj_in.diff")]
    before, after = (each.unet.mid_block.attentions[0].proj_in.weight for each in (velatura.tiny(), base))
    assert (after - before - learned.trainable_parameters[name]).abs().max() < 1e-3 * before.abs().max()


def test_class_pictures_are_only_announced_by_a_dry_run(desk, capsys):
    words = ["--class-prompt", "a wall", "--class-pictures", "3", "--dry-run"]
    assert main(["train", "dreambooth", "photos", *words, *BRIEF]) == 0
    assert "3 class pictures of a wall" in capsys.readouterr().out
    assert not (desk / "photos" / "reg").exists()


@pytest.mark.usefixtures("desk")
def test_a_class_prompt_that_cannot_be_is_refused_by_a_dry_run_too(capsys):
    words = ["--class-prompt", "a <lora:x:1> wall", "--dry-run"]
    assert main(["train", "dreambooth", "photos", *words, *BRIEF]) == 2
    assert "must say what the pictures show, without tags" in capsys.readouterr().err


@pytest.mark.usefixtures("desk")
def test_an_aesthetic_passes_the_prediction_to_its_base(capsys):
    assert main(["train", "aesthetic", "photos", "--prediction", "v", "--zero-snr"]) == 2
    assert "leave out --prediction and --zero-snr" in capsys.readouterr().err


def test_an_aesthetic_is_made_of_pictures_without_captions(desk, capsys):
    (desk / "photos" / "a red wall.png").rename(desk / "photos" / "IMG_1234.png")
    assert main(["train", "aesthetic", "photos", "--name", "dusk", "--steps", "2"]) == 0
    called = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("try:"))
    assert velatura.open_overlay(desk / "dusk.safetensors").settings.steps == 2
    assert main([*called[1:], "--steps", "1", "--out", "picture.png"]) == 0
    assert main(["train", "aesthetic", "photos", "--name", "dusk"]) == 2
    assert "dusk.safetensors is there already" in capsys.readouterr().err


def test_every_kind_has_help_in_groups_and_two_examples(capsys):
    for kind in ("hypernet", "embedding", "lora", "dreambooth", "aesthetic"):
        main(["train", kind, "--help"])
        said = capsys.readouterr().out
        assert said.count(f"velatura train {kind} ") >= 2, kind
        assert "Overlay and base" in said


def test_a_hypernetwork_is_trained_further(desk, capsys):
    """Two runs of two steps: the second counts on from the first, with the optimizer's state of A1111's files."""
    assert main(["train", "hypernet", "photos", *BRIEF, "--set", "a1111=true", "--out", "one"]) == 0
    old = desk / "one" / "photos.pt"
    assert main(["train", "hypernet", "photos", *BRIEF, "--start", str(old), "--out", "two", "--name", "new"]) == 0
    overlay = velatura.open_overlay(desk / "two" / "new.safetensors")
    assert (overlay.card.name, overlay.card.steps) == ("new", 4)
    assert main(["train", "hypernet", "photos", "--start", str(old), "--layers", "1,3,1"]) == 2
    assert "leave out --layers" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "planned"), [([], "none"), (["--tune"], "True"), (["--no-tune"], "False")])
def test_tune_and_no_tune_are_planned(desk, capsys, flag, planned):
    assert main(["train", "hypernet", "photos", *BRIEF, *flag, "--dry-run"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["tune"]]
    assert line.split()[1] == planned


def test_only_a_hypernetwork_is_trained_further_as_one(desk, capsys):
    velatura.save(velatura.Lora.for_base(velatura.tiny(), rank=2), desk / "x.safetensors")
    assert main(["train", "hypernet", "photos", "--start", "x.safetensors"]) == 2
    assert "x.safetensors is a LoRA, and --start needs a hypernetwork" in capsys.readouterr().err
