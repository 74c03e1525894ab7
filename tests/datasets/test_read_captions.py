"""Where captions come from: texts, lists of a folder, names by the webui's rules."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from velatura.datasets.check import check_folder
from velatura.datasets.folder import Example, read_dataset, read_folder
from velatura.datasets.name_captions import NameRules
from velatura.errors import BadDataset, VelaturaWarning

GOLDEN = Path(__file__).parents[1] / "data" / "a1111" / "train"  # made by the webui v1.8.0
TABLE = json.loads((GOLDEN / "dataset.json").read_text())


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.mark.parametrize("case", TABLE["filewords"], ids=lambda case: f"{case['file']} {case['word_regex']}")
def test_names_become_words_as_in_the_webui(case):
    rules = NameRules(case["word_regex"], case["join_string"] or "")
    assert rules.words(Path(case["file"]).stem) == case["filewords"]


def test_a_folder_is_read_by_such_rules(tmp_path):
    draw(tmp_path / "01-red_house-night.png")
    rules = NameRules("[a-z]+", ", ")
    assert [example.caption for example in read_dataset(tmp_path, rules=rules).examples] == ["red, house, night"]
    with pytest.raises(BadDataset, match=r"pattern '\(' for words in file names is not a regular expression"):
        read_dataset(tmp_path, rules=NameRules("("))


def test_a_caption_file_counts_and_a_txt_file_goes_before_it(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "0.caption").write_text("a cup")
    assert read_folder(tmp_path) == [Example(tmp_path / "0.png", "a cup")]
    (tmp_path / "0.txt").write_text("a mug")
    assert read_folder(tmp_path) == [Example(tmp_path / "0.png", "a mug")]


def test_a_list_of_the_folder_says_what_its_pictures_show(tmp_path):
    for name in ("0.png", "1.png", "a cat.png", "3.png"):
        draw(tmp_path / name)
    lines = [
        {"file_name": "0.png", "text": "a house"},
        {"image": "images/1.png", "tags": ["boat", "sea"]},
        {"file_name": "a cat.png", "caption": "not this, the text beside it"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "more.jsonl").write_text('{"path": "3.png", "prompt": "a key"}')
    (tmp_path / "a cat.txt").write_text("a cat asleep")
    assert [example.caption for example in read_folder(tmp_path)] == ["a house", "boat, sea", "a key", "a cat asleep"]


@pytest.mark.parametrize("line", ["no json", '{"text": "x"}', '{"file_name": "0.png"}', "[1]", '{"file":"a","tags":7}'])
def test_a_list_that_cannot_be_understood_is_refused_with_its_line(tmp_path, line):
    draw(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a house"}\n' + line)
    with pytest.raises(BadDataset, match=r'metadata\.jsonl, line 2 (is not JSON|lacks).*: write \{"file_name"'):
        read_folder(tmp_path)


def test_a_list_that_speaks_of_missing_pictures_says_so(tmp_path):
    draw(tmp_path / "a cat.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a house"}')
    with pytest.warns(VelaturaWarning, match=r"lists 1 picture that is not in the folder, such as 'gone\.png'"):
        read_folder(tmp_path)


def test_pictures_in_counted_folders_count_so_often(tmp_path):
    draw(tmp_path / "a cat.png")
    draw(tmp_path / "3_boats" / "a boat.png")
    draw(tmp_path / "other" / "a key.png")
    assert [example.caption for example in read_folder(tmp_path)] == ["a cat", "a boat", "a boat", "a boat"]
    assert [example.repeats for example in read_dataset(tmp_path).examples] == [1, 3]


@pytest.mark.parametrize(("name", "count"), [("0_cats", 0), ("20231105_holiday", 20231105)])
def test_a_folder_that_counts_nought_or_is_named_by_a_date_is_refused(tmp_path, name, count):
    draw(tmp_path / name / "a cat.png")
    with pytest.raises(
        BadDataset,
        match=rf"would count {count} times, .*: rename the folder to begin with a number from 1 to 1000, or with none",
    ):
        read_folder(tmp_path)


def test_regularisation_pictures_are_kept_apart(tmp_path):
    draw(tmp_path / "5_inca" / "inca man.png")
    draw(tmp_path / "reg" / "2_man" / "some man.png")
    dataset = read_dataset(tmp_path)
    assert [example.caption for example in dataset.examples] == ["inca man"]
    assert [(example.caption, example.repeats) for example in dataset.regularisation] == [("some man", 2)]
    assert len(read_folder(tmp_path)) == 5


@pytest.mark.parametrize("name", ["0.TXT", "0.png.txt", "0.Caption", "0.png.TXT"])
def test_texts_with_other_spellings_of_the_name_are_read(tmp_path, name):
    draw(tmp_path / "0.png")
    (tmp_path / name).write_text("a cup")
    assert read_folder(tmp_path) == [Example(tmp_path / "0.png", "a cup")]
    assert {finding.kind for finding in check_folder(tmp_path, 8).findings} & {"caption", "named", "stray"} == set()


@pytest.mark.parametrize(("picture_form", "text_form"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_names_are_the_same(tmp_path, picture_form, text_form):
    picture = draw(tmp_path / (unicodedata.normalize(picture_form, "\u00e9t\u00e9") + ".png"))
    (tmp_path / (unicodedata.normalize(text_form, "\u00e9t\u00e9") + ".txt")).write_text("summer, the sea")
    assert read_folder(tmp_path) == [Example(picture, "summer, the sea")]
    listed = draw(tmp_path / (unicodedata.normalize(picture_form, "b\u00e9b\u00e9") + ".png"))
    line = {"file_name": unicodedata.normalize(text_form, "b\u00e9b\u00e9") + ".png", "text": "a child"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    assert Example(listed, "a child") in read_folder(tmp_path)


# The layout of A1111's generation data: prompt, "Negative prompt:", and a last line from "Steps:" on
INFOTEXT = """a cat, (asleep:1.2) <lora:cats:0.8>
by the sea
Negative prompt: blurry
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"""


def test_of_generation_data_only_the_prompt_is_learned(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text(INFOTEXT)
    with pytest.warns(VelaturaWarning, match=r"0\.txt holds the settings of a generated picture: only the prompt"):
        [example] = read_folder(tmp_path)
    assert example.caption == "a cat, (asleep:1.2) \nby the sea"
    assert "infotext" in {finding.kind for finding in check_folder(tmp_path, 8).findings}
    (tmp_path / "0.txt").write_text(INFOTEXT[INFOTEXT.index("Negative") :])
    with pytest.raises(BadDataset, match=r"0\.txt holds settings of a picture, but no prompt: write what"):
        read_folder(tmp_path)


def test_a_caption_that_mentions_steps_is_left_whole(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("Steps: 20 of stone, in a garden")
    assert read_folder(tmp_path)[0].caption == "Steps: 20 of stone, in a garden"


def test_csv_lists_and_json_beside_the_picture_are_read(tmp_path):
    for name in ("0.png", "1.png", "2.png"):
        draw(tmp_path / name)
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"a cat, asleep"\n')
    (tmp_path / "1.json").write_text('{"tags": ["boat", "sea"]}')
    (tmp_path / "2.png.json").write_text('{"caption": "a key"}')
    assert [example.caption for example in read_folder(tmp_path)] == ["a cat, asleep", "boat, sea", "a key"]


def test_pictures_with_two_captions_in_a_list_are_named_in_one_warning(tmp_path):
    lines = []
    for name in ("0.png", "1.png", "2.png"):
        draw(tmp_path / name)
        lines += [json.dumps({"file_name": name, "text": text}) for text in ("a house", "a boat")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.warns(VelaturaWarning) as caught:
        assert [example.caption for example in read_folder(tmp_path)] == ["a boat"] * 3
    [message] = [str(warning.message) for warning in caught]
    assert "two captions for '0.png'" in message
    assert message.endswith("(and 2 more of this kind)")


def test_json_files_without_captions_are_named_in_one_warning(tmp_path):
    for name in ("a boat", "a cat", "a key"):
        draw(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text('{"rating": 5}')
    with pytest.warns(VelaturaWarning) as caught:
        assert [example.caption for example in read_folder(tmp_path)] == ["a boat", "a cat", "a key"]
    [message] = [str(warning.message) for warning in caught]
    assert "a boat.json holds no caption" in message
    assert message.endswith("(and 2 more of this kind)")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [("file_name,text\n0.png,a cat, asleep", "line 2 has more texts"), ('file_name,text\n0.png,"a cat', "is not CSV")],
)
def test_a_csv_list_that_would_lose_words_is_refused(tmp_path, rows, reason):
    draw(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text(rows)
    with pytest.raises(BadDataset, match=reason):
        read_folder(tmp_path)


def test_a_csv_list_without_captions_is_named(tmp_path):
    draw(tmp_path / "a cat.png")
    (tmp_path / "metadata.csv").write_text("id,label\n1,cat")
    (tmp_path / "prices.csv").write_text("id,label\n1,cat")
    with pytest.warns(VelaturaWarning, match=r"metadata\.csv has no columns file_name and text"):
        assert read_folder(tmp_path)[0].caption == "a cat"


def write_metadata(path, **entries):
    path.write_text(json.dumps(entries))


def captions(folder):
    return {example.path.name: example.caption for example in read_folder(folder)}


@pytest.mark.parametrize("name", ["meta_cap.json", "meta_lat.json", "captions.json"])
@pytest.mark.parametrize("key", ["0", "0.png", "/train/photos/0.png", "D:\\train\\photos\\0.png"])
def test_the_metadata_of_kohyas_fine_tuning_is_read(tmp_path, name, key):
    draw(tmp_path / "0.png")
    # its trainer puts the tags behind the caption, with a comma between them
    for fields, caption in (
        ({"caption": "a cat"}, "a cat"),
        ({"tags": "cat, red", "train_resolution": [512, 448]}, "cat, red"),
        ({"caption": "a cat", "tags": "cat, red"}, "a cat, cat, red"),
    ):
        write_metadata(tmp_path / name, **{key: fields})
        assert captions(tmp_path) == {"0.png": caption}


def test_a_text_file_goes_before_metadata(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a dog")
    write_metadata(tmp_path / "meta_cap.json", **{"0": {"caption": "a cat"}})
    assert captions(tmp_path) == {"0.png": "a dog"}


def test_of_several_files_of_metadata_the_last_step_is_read(tmp_path):
    draw(tmp_path / "0.png")
    for name, caption in (("meta_cap", "a cat"), ("meta_cap_dd", "cat"), ("meta_clean", "a clean cat")):
        write_metadata(tmp_path / f"{name}.json", **{"0": {"caption": caption}})
    with pytest.warns(VelaturaWarning, match=r"holds 3 files of metadata .* only meta_clean\.json is read"):
        assert captions(tmp_path) == {"0.png": "a clean cat"}


def test_metadata_of_a_picture_with_the_same_name_elsewhere_is_not_taken(tmp_path):
    draw(tmp_path / "red_house.png")
    other = draw(tmp_path / "mine" / "red_house.png")
    write_metadata(tmp_path / "meta_cap.json", **{str(other): {"caption": "a cat"}})
    assert captions(tmp_path)["red_house.png"] == "red_house"


@pytest.mark.parametrize("content", ["{}", "[1, 2]", '{"0": {"tags": []}}', '{"name": "x"}'])
def test_a_file_of_metadata_without_captions_is_named(tmp_path, content):
    draw(tmp_path / "red_house.png")
    (tmp_path / "meta_cap.json").write_text(content)
    with pytest.warns(VelaturaWarning, match=r"meta_cap\.json holds no captions by pictures"):
        assert captions(tmp_path) == {"red_house.png": "red_house"}
    (tmp_path / "meta_cap.json").rename(tmp_path / "notes.json")
    assert captions(tmp_path) == {"red_house.png": "red_house"}


def test_damaged_metadata_is_refused(tmp_path):
    draw(tmp_path / "red_house.png")
    (tmp_path / "meta_lat.json").write_text('{"0": {"capt')
    with pytest.raises(BadDataset, match=r"meta_lat\.json is not JSON"):
        read_folder(tmp_path)
