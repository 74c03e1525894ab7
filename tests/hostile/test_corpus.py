"""Law: each hostile case is refused, warned of or loaded as its kind demands, by opening and by inspecting alike."""

import warnings

import pytest
from PIL import Image

import velatura
from tests.hostile import (
    checkpoint_cases,
    container_cases,
    dataset_cases,
    image_cases,
    lora_cases,
    optimizer_cases,
    safetensors_cases,
    text_cases,
    torch_cases,
    vae_cases,
)
from tests.hostile.cases import LOAD, REFUSE, WARN
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.datasets.check import check_folder
from velatura.datasets.crop import CropOptions, crop_folder
from velatura.datasets.pictures import read_picture
from velatura.errors import VelaturaError, VelaturaWarning, ignore_warnings
from velatura.formats.hypernetworks.optim import read_optim
from velatura.formats.inspect.inspect import inspect_file

OVERLAYS = [*lora_cases.CASES, *torch_cases.CASES, *safetensors_cases.CASES, *container_cases.CASES]
BASES = [
    pytest.param(case, marks=[pytest.mark.slow] if case.is_slow else [], id=str(case))
    for case in checkpoint_cases.CASES
]
PICTURES = [case for case in [*image_cases.CASES, *container_cases.PICTURES] if case.kind != "png_info"]
RECIPES = [case for case in image_cases.CASES if case.kind == "png_info"]
SOME_FILES = [*OVERLAYS, *optimizer_cases.CASES, *checkpoint_cases.CASES]
CASES = [*SOME_FILES, *vae_cases.CASES, *PICTURES, *RECIPES, *dataset_cases.CASES, *text_cases.CASES]


def try_reading(read, *arguments):
    """Return "refuse", "warn" or "load", and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "the tiny base was not trained on")  # of the base, not of the text
        try:
            read(*arguments)
        except VelaturaError as error:
            return "refuse", [str(error)]
    assert all(issubclass(each.category, VelaturaWarning) for each in caught), caught[0].message
    messages = [str(each.message) for each in caught]
    return ("warn" if messages else "load"), messages


def inspect(path):
    try:
        info = inspect_file(path, is_whole=True)
    except VelaturaError as error:
        return "refuse", [str(error)]
    if info.problem:
        return "refuse", [info.problem]
    return ("warn" if info.warnings else "load"), list(info.warnings)


def is_one_line_about(message, path):
    return path.name in message and "\n" not in message and message.isprintable() and len(message) < 600


@pytest.mark.parametrize("case", OVERLAYS, ids=str)
def test_overlays_are_opened_and_inspected_alike(tmp_path, case):
    path = case.write(tmp_path)
    verdict, messages = try_reading(velatura.open_overlay, path)
    assert verdict == case.must, messages
    assert all(is_one_line_about(message, path) for message in messages)
    assert inspect(path)[0] == case.must


@pytest.mark.parametrize("case", BASES)
def test_checkpoints_are_opened_and_inspected_alike(tmp_path, case):
    path = case.write(tmp_path)
    verdict, messages = try_reading(lambda: velatura.open_base(path, dtype="float32", device="cpu"))
    assert verdict == case.must, messages
    assert all(is_one_line_about(message, path) for message in messages)
    assert inspect(path)[0] == (case.inspected or case.must)


@pytest.mark.parametrize("case", vae_cases.CASES, ids=str)
def test_autoencoders_are_inspected_as_a_base_would_open_them(tmp_path, case):
    path = case.write(tmp_path)
    verdict, messages = inspect(path)
    assert verdict == case.must, messages
    assert all(is_one_line_about(message, path) for message in messages)


@pytest.mark.parametrize("case", optimizer_cases.CASES, ids=str)
def test_states_of_optimizers_are_read_and_inspected_alike(tmp_path, case):
    path = case.write(tmp_path)
    verdict, messages = try_reading(read_optim, path.with_suffix(""))
    assert verdict == case.must, messages
    assert all(is_one_line_about(message, path) for message in messages)
    assert inspect(path)[0] == case.must


def learn_pictures(folder):
    for example in velatura.read_dataset(folder).examples:
        read_picture(example.path, 32)


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_pictures_to_learn_from_are_refused_warned_of_or_read(tmp_path, case):
    folder = tmp_path / "set"
    folder.mkdir()
    path = case.write(folder)
    path = path.rename(path.with_name(f"a red house{path.suffix}"))
    verdict, messages = try_reading(learn_pictures, folder)
    assert verdict == case.must, messages
    assert all(is_one_line_about(message, path) for message in messages)
    with ignore_warnings():
        assert bool(check_folder(folder, 32).errors) == (verdict == REFUSE)
        cropped, _ = try_reading(crop_folder, folder, tmp_path / "cropped", CropOptions(32))
    assert (cropped == REFUSE) == (verdict == REFUSE)


REFUSED_WHEN_UNPACKED = ("ds_caption_picture", "ds_only_class")  # as a folder of the same files is


@pytest.mark.parametrize("case", dataset_cases.CASES, ids=str)
def test_zips_to_learn_from_are_unpacked_once_and_answered_alike(tmp_path, case, monkeypatch):
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "cache"))
    path = case.write(tmp_path)
    before = set(tmp_path.rglob("*"))
    verdict, messages = try_reading(learn_pictures, path)
    assert verdict == case.must, messages
    assert all("\n" not in message and message.isprintable() and len(message) < 600 for message in messages)
    assert try_reading(learn_pictures, path) == (verdict, messages)
    cache = tmp_path / "cache"
    new = set(tmp_path.rglob("*")) - before - {cache, cache / "datasets"}
    folders = [found for found in new if found.parent == cache / "datasets"]  # of the one zip, by its hash
    assert len(folders) == (0 if verdict == REFUSE and case.name not in REFUSED_WHEN_UNPACKED else 1), new
    assert all(found in folders or folders[0] in found.parents for found in new)
    assert not any(found.is_symlink() for found in new)


@pytest.mark.parametrize("case", RECIPES, ids=str)
def test_recipes_in_pictures_are_read_and_shown_alike(tmp_path, case, capsys):
    path = case.write(tmp_path)
    verdict, messages = try_reading(velatura.Recipe.from_image, path)
    assert verdict == case.must, messages
    assert all(is_one_line_about(message, path) for message in messages)
    assert show(path, capsys)[0] == case.must


def show(path, capsys):
    """Return what the command line makes of a file, and what it prints on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status = main(["show", str(path)])
    printed = capsys.readouterr().err
    if status == USER_ERROR_STATUS:
        assert printed.splitlines()[-1].startswith("error: ")
        return REFUSE, printed
    assert status == 0
    return (WARN if "warning: " in printed else LOAD), printed


@pytest.mark.parametrize("case", [*SOME_FILES[::9], *PICTURES[::9]], ids=str)
def test_the_command_line_answers_in_one_line(tmp_path, case, capsys):
    path = case.write(tmp_path)
    verdict, printed = show(path, capsys)
    assert "Traceback" not in printed
    if case not in PICTURES:  # which hold no recipe
        assert verdict == (case.inspected or case.must), printed


def test_a_library_lists_files_as_they_are_opened(tmp_path):
    expected = {}
    for case in [case for case in [*OVERLAYS, *checkpoint_cases.CASES] if not case.is_slow][::7]:
        path = case.write(tmp_path)
        if path.suffix != ".png":  # a library looks for embeddings in pictures where embeddings are kept
            expected[path] = case.inspected or case.must
    entries = velatura.Library(tmp_path).entries()
    found = {entry.path: REFUSE if entry.error else WARN if entry.info.warnings else LOAD for entry in entries}
    assert found == expected


def read_prompt(text, tiny, _):
    prompt = velatura.Prompt.parse(text)
    prompt.schedule(20)
    if not prompt.tags:  # whose overlays are not there
        velatura.generate(tiny, text, steps=1, width=64, height=64, seed=1)


def read_infotext(text, _, folder):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "house.txt").write_bytes(data)
    recipe = velatura.Recipe.from_file(folder / "house.txt")
    velatura.Prompt.parse(recipe.prompt).schedule(recipe.steps)


def read_rates(text, *_):
    velatura.Plan(learning_rate=text, steps=100)


def read_captions(text, _, folder):
    Image.new("RGB", (64, 64)).save(folder / "cat.png")
    (folder / "cat.txt").write_bytes(text)
    velatura.read_dataset(folder)


READERS = {
    "prompt": read_prompt,
    "infotext": read_infotext,
    "lr_schedule": read_rates,
    "caption": read_captions,
}


@pytest.mark.parametrize("case", text_cases.CASES, ids=str)
def test_texts_are_refused_warned_of_or_read(tiny, tmp_path, case):
    verdict, messages = try_reading(READERS[case.kind], case.write, tiny, tmp_path)
    assert verdict == case.must, messages
    assert all("\n" not in message and message.isprintable() for message in messages)


def test_the_cases_have_names_of_their_own():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)
