"""Which names mean which files: ends of paths as other programs write them, titles with hashes, shared names."""

import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.errors import UnknownName, VelaturaWarning
from velatura.library.model_files import FileState, ModelFile
from velatura.library.names import is_called, normalize_path

DATA = Path(__file__).parents[1] / "data"
LORA, HYPERNETWORK = "nature/kohya_lora_d4a1.safetensors", "hypernet/m00_linear.pt"
OTHER_LORA = "nature/diff_lora_r4a8.safetensors"


def put(source: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / source, target)
    return target


@pytest.fixture
def webui(tmp_path):
    """A LoRA in a subfolder of the web UI's folder."""
    put(LORA, tmp_path / "models" / "Lora" / "style" / "ink v1.5.safetensors")
    return tmp_path


TAILS = [
    "ink v1.5",
    "ink v1.5.safetensors",
    "style/ink v1.5",
    "style\\ink v1.5",
    "style\\ink v1.5.safetensors",
    "Lora/style/ink v1.5",
    "lora\\STYLE\\Ink v1.5",
    "models/Lora/style/ink v1.5.safetensors",
    "./style/ink v1.5",
    "/style//ink v1.5",
]
PARTS_OF_NAMES = [
    "v1.5",
    "5",
    "1.5.safetensors",
    "yle/ink v1.5",
    "style",
    "style/",
    "style/ink v1",
    ".safetensors",
    "",
    "/",
]


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("folder", [".", "models", "models/Lora"])
def test_a_name_may_be_any_number_of_whole_parts_at_the_end_of_a_path(webui, folder, name):
    path = velatura.Library(webui / folder).path(name, "lora")
    assert path.resolve() == (webui / "models" / "Lora" / "style" / "ink v1.5.safetensors").resolve()


@pytest.mark.parametrize("name", PARTS_OF_NAMES)
def test_a_piece_of_a_part_is_not_a_name(webui, name):
    with pytest.raises(UnknownName):
        velatura.Library(webui).path(name, "lora")


PART = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='/\\.<>:"|?*'), min_size=1
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(parts=st.lists(PART, min_size=1, max_size=4), slash=st.sampled_from("/\\"))
def test_every_tail_of_a_path_is_a_name_and_nothing_longer_is(parts, slash):
    path = Path("/models", *parts[:-1], parts[-1] + ".safetensors")
    file = model_file_without_disk(path)
    for count in range(1, len(parts) + 1):
        for ending in ("", ".safetensors"):
            assert is_called(file, normalize_path(slash.join(parts[-count:]) + ending))
    assert not is_called(file, normalize_path(slash.join(["other", *parts])))
    assert not is_called(file, normalize_path("x" + slash.join(parts)))


def model_file_without_disk(path: Path):

    return ModelFile(path, path.stem, "", FileState(0, 0, 0))


def test_a_whole_path_is_not_ambiguous_though_a_longer_one_ends_alike(tmp_path):
    near = put(LORA, tmp_path / "style" / "ink.safetensors")
    far = put(OTHER_LORA, tmp_path / "old" / "style" / "ink.safetensors")
    library = velatura.Library(tmp_path)
    assert library.path("style/ink") == near
    assert library.path("old\\style\\ink") == far
    with pytest.warns(
        VelaturaWarning, match=r"old.style.ink\.safetensors and .*are both called 'ink': the first is used"
    ):
        assert library.path("ink") == far


def test_a_tail_that_two_paths_share_is_warned_of(tmp_path):
    first = put(LORA, tmp_path / "a" / "style" / "ink.safetensors")
    put(OTHER_LORA, tmp_path / "b" / "style" / "ink.safetensors")
    with pytest.warns(VelaturaWarning, match="are both called 'style/ink': .* write more of its path"):
        assert velatura.Library(tmp_path).path("style/ink") == first


def test_two_files_with_the_same_content_are_not_ambiguous(tmp_path):
    first = put(LORA, tmp_path / "a" / "ink.safetensors")
    put(LORA, tmp_path / "b" / "ink.safetensors")
    assert velatura.Library(tmp_path).path("ink") == first


def test_the_file_in_the_same_case_comes_first(tmp_path):
    put(OTHER_LORA, tmp_path / "a" / "Ink.safetensors")
    lower = put(LORA, tmp_path / "b" / "ink.safetensors")
    with pytest.warns(VelaturaWarning, match="are both called 'ink'"):
        assert velatura.Library(tmp_path).path("ink") == lower


def test_a_title_with_a_path_and_a_hash_finds_the_file(tmp_path):
    path = put(HYPERNETWORK, tmp_path / "anime" / "inca.pt")
    short = sha256(path.read_bytes()).hexdigest()[:10]
    library = velatura.Library(tmp_path)
    for title in (f"anime\\inca.pt [{short}]", f"inca [{short}]", f"renamed.ckpt [{short.upper()}]"):
        assert library.path(title) == path


def test_a_title_whose_hash_no_file_has_is_warned_of(tmp_path):
    path = put(HYPERNETWORK, tmp_path / "inca.pt")
    with pytest.warns(VelaturaWarning, match=r"no file has the hash 0123456789 of 'inca': .*inca\.pt is used"):
        assert velatura.Library(tmp_path).path("inca [0123456789]") == path


def test_the_hash_of_a_title_chooses_between_files_of_one_name(tmp_path):
    put(LORA, tmp_path / "a" / "ink.safetensors")
    other = put("nature/lyco_oft.safetensors", tmp_path / "b" / "ink.safetensors")
    short = sha256(other.read_bytes()).hexdigest()[:10]
    assert velatura.Library(tmp_path).path(f"ink [{short}]") == other


@pytest.fixture
def shelf(tiny, tmp_path, monkeypatch):
    """The tiny base under another name, in a folder of a library below the working folder."""
    monkeypatch.chdir(tmp_path)
    velatura.save(tiny, tmp_path / "models" / "checkpoints" / "anime" / "small.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["anime/small", "anime\\small.safetensors", "checkpoints/anime/small"])
@pytest.mark.usefixtures("shelf")
def test_the_command_line_takes_a_base_by_a_part_of_its_path(name, capsys):
    assert main(["generate", "a", "--base", name, "--library", "models", "--steps", "1", "--out", "a.png"]) == 0
    assert velatura.Recipe.from_image("a.png").base == "small"
    assert main(["show", name, "--library", "models"]) == 0


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("web-ui", "anime/small"),
        ("web-ui", "Anime\\Small.safetensors"),
        ("web-ui", "Stable-diffusion/anime/small"),
        ("web-ui", "models/Stable-diffusion/anime/small"),
        ("web-ui/models", "anime/small.safetensors"),
        ("web-ui/models/Stable-diffusion", "anime/small"),
        ("web-ui/models/Stable-diffusion/anime", "small"),
    ],
)
def test_the_command_line_takes_a_base_below_the_folder_of_the_web_ui(library, name, tiny, tmp_path, monkeypatch):
    """A1111 keeps checkpoints in models/Stable-diffusion, and names them by their path below it."""
    monkeypatch.chdir(tmp_path)
    velatura.save(tiny, tmp_path / "web-ui" / "models" / "Stable-diffusion" / "anime" / "small.safetensors")
    assert main(["generate", "a", "--base", name, "--library", library, "--steps", "1", "--out", "a.png"]) == 0
    assert velatura.Recipe.from_image("a.png").base == "small"


@pytest.mark.usefixtures("shelf")
def test_merging_takes_models_by_a_part_of_their_path(capsys):
    words = [
        "merge",
        "anime/small",
        "anime\\small",
        "--strength",
        "0.5",
        "--library",
        "models",
        "--out",
        "m.safetensors",
    ]
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a", "--base"],
        ["show"],
        ["extract", "--out", "x.safetensors", "tiny"],
        ["bake", "tiny", "--out", "y"],
    ],
)
@pytest.mark.usefixtures("shelf")
def test_a_path_that_is_no_file_and_no_name_is_refused_as_both(words, capsys):
    assert main([*words, "anime/smoll.safetensors", "--library", "models"]) == USER_ERROR_STATUS
    assert "anime/smoll.safetensors" in (printed := capsys.readouterr().err)
    assert "does not exist, and no" in printed
