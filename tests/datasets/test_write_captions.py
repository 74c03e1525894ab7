"""Captions written by what looks at pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from tools.drawing.paint import paint
from tools.tiny_base.data import unseen_scene
from velatura.datasets.captioners.captioner import open_captioner
from velatura.datasets.captioners.onnx_taggers import format_tag
from velatura.datasets.captioners.tiny_subjects import SubjectFinder
from velatura.datasets.folder import read_folder
from velatura.datasets.write_captions import caption_folder
from velatura.errors import BadDataset, BadFile, UnknownName

WORDS = ("red", "blue", "house", "boat", "on", "the", "sea")


@dataclass
class Colours:
    """A captioner whose words are the picture's first pixel: what is tried here is the folder, not the eye."""

    say: Callable[[tuple[int, int, int]], str] = str

    def caption(self, image):
        return self.say(image.getpixel((0, 0)))


def draw(path, color=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("keep", "a house"), ("replace", "red"), ("prepend", "red, a house"), ("append", "a house, red")],
)
def test_captions_that_are_there_are_treated_as_asked(tmp_path, existing, expected):
    draw(tmp_path / "0.png")
    draw(tmp_path / "3_more" / "1.png")
    (tmp_path / "0.txt").write_text("a house")
    written = list(caption_folder(tmp_path, Colours(lambda _: "red"), existing=existing))
    assert len(written) == (1 if existing == "keep" else 2)
    assert (tmp_path / "0.txt").read_text().strip() == expected
    assert {example.caption for example in read_folder(tmp_path)} == {expected, "red"}


@pytest.mark.parametrize(("existing", "expected"), [("keep", "chelsea the cat"), ("append", "chelsea the cat, red")])
def test_a_file_name_that_describes_the_picture_is_a_caption(tmp_path, existing, expected):
    draw(tmp_path / "chelsea the cat.png")
    draw(tmp_path / "IMG_1234.png")
    written = list(caption_folder(tmp_path, Colours(lambda _: "red"), existing=existing))
    assert (tmp_path / "IMG_1234.txt").read_text() == "red\n"
    assert len(written) == (1 if existing == "keep" else 2)
    captions = {example.path.name: example.caption for example in read_folder(tmp_path)}
    assert captions["chelsea the cat.png"] == expected


def test_a_caption_is_written_where_it_is_read(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "0.caption").write_text("a house")
    list(caption_folder(tmp_path, Colours(lambda _: "red"), existing="append", prefix="inca"))
    assert not (tmp_path / "0.txt").exists()
    assert read_folder(tmp_path)[0].caption == "a house, inca, red"


def test_of_what_nothing_is_said_nothing_is_written(tmp_path):
    draw(tmp_path / "0.png")
    assert list(caption_folder(tmp_path, Colours(lambda _: ""))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_a_text_that_cannot_be_read_is_never_overwritten(tmp_path):
    draw(tmp_path / "0.png")
    (tmp_path / "0.txt").write_bytes(b"ma\xeetre")
    for existing in ("keep", "replace"):
        with pytest.raises(BadDataset, match=r"0\.txt is not UTF-8 text: save"):
            list(caption_folder(tmp_path, Colours(), existing=existing))
    assert (tmp_path / "0.txt").read_bytes() == b"ma\xeetre"


def test_unknown_captioners_and_ways_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="no captioner or folder is called 'blib': did you mean 'blip'"):
        open_captioner("blib")
    with pytest.raises(BadDataset, match="deepbooru is not on the hub: name the folder"):
        open_captioner("deepbooru")
    with pytest.raises(BadDataset, match=r"has neither an \.onnx tagger nor"):
        open_captioner(str(tmp_path))
    with pytest.raises(UnknownName, match="no mode for existing captions is called 'kep'"):
        list(caption_folder(tmp_path, Colours(), existing="kep"))


def test_a_model_that_is_not_in_the_hubs_cache_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadDataset, match=r"wd14 is not in the Hugging Face cache: run hf download SmilingWolf"):
        open_captioner("wd14")


# The words of tools/drawing for what the captioner calls by one name each
SHOWN = {"sea": "under the sea", "space": "in space", "room": "in a room", "beach": "on the beach", "dusk": "at sunset"}


# Combinations that the base never saw. Measured: 88 subjects, 91 colours, all places and times
@pytest.mark.parametrize(("count", "missed"), [(10, 3), pytest.param(100, 17, marks=pytest.mark.slow)])
def test_the_tiny_base_captions_its_own_world(count, missed):
    captioner = open_captioner("tiny")
    scenes = [unseen_scene(30_000_000 + place) for place in range(count)]
    said = [f"{captioner.caption(paint(scene))} " for scene in scenes]
    pairs = list(zip(scenes, said, strict=True))
    assert sum(f" {scene.subject} " in text for scene, text in pairs) >= count - missed
    assert sum(f" {scene.colour} " in text for scene, text in pairs) >= count - missed
    assert sum(SHOWN.get(scene.place, scene.place) in text for scene, text in pairs) >= count - count // 30
    under_a_sky = [(scene, text) for scene, text in pairs if scene.place not in {"sea", "space", "room"}]
    right = sum(SHOWN.get(scene.time, scene.time) in text for scene, text in under_a_sky)
    assert right >= len(under_a_sky) - count // 30


def test_the_finder_of_subjects_leaves_the_base_as_it_is(tiny):
    parts, keys = list(tiny.unet.children()), list(tiny.unet.state_dict())
    finder = SubjectFinder(tiny)
    finder.find(torch.zeros(2, 3, 64, 64))
    assert list(tiny.unet.children()) == parts
    assert list(tiny.unet.state_dict()) == keys


def test_the_tiny_base_says_colour_thing_place_and_time():
    text = open_captioner("tiny").caption(paint(unseen_scene(10_000_005)))  # a purple crown in the mountains at noon
    assert text == "a purple crown in the mountains by day"


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A BLIP of random weights that knows seven words."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS)))
    text = {
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 8,
        "vocab_size": 13,
    }
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "image_size": 32, "patch_size": 16, **sizes}
    config = BlipConfig(text_config={**text, **tokens, **sizes}, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    words = BertTokenizerFast(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words).save_pretrained(folder)
    return folder


def test_a_blip_from_a_folder_describes_pictures(blip):
    said = open_captioner(str(blip)).caption(plain("teal"))
    assert set(said.split()) <= {*WORDS, "[DEC]", "[UNK]"}
    assert len(said.split()) > 3


def test_a_folder_without_weights_is_refused(blip, tmp_path):
    for path in blip.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadFile, match="holds neither model"):
        open_captioner(str(tmp_path))


def plain(color):
    return Image.new("RGB", (40, 30), color)


@pytest.fixture
def tagger(tmp_path):
    """Make a tagger in ONNX whose labels are the means of red, green and blue as it is given them, over a divisor."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    def make(divisor, name, labels):
        value = helper.make_tensor_value_info
        nodes = [
            helper.make_node("ReduceMean", ["picture", "axes"], ["mean"], keepdims=0),
            helper.make_node("Div", ["mean", "divisor"], ["labels"]),
        ]
        constants = [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("divisor", TensorProto.FLOAT, [1], [divisor]),
        ]
        picture = value("picture", TensorProto.FLOAT, [None, 8, 8, 3])
        graph = helper.make_graph(nodes, "mean", [picture], [value("labels", TensorProto.FLOAT, [None, 3])], constants)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx"
        )
        (tmp_path / name).write_text(labels)
        return open_captioner(str(tmp_path))

    return make


def test_a_wd14_tagger_sees_blue_first_and_tells_the_likeliest_first(tagger):
    labels = "tag_id,name,category,count\n1,general,9,1\n2,long_hair_(x),0,1\n3,red_thing,4,1\n"
    made = tagger(255.0, "selected_tags.csv", labels)
    assert made.caption(Image.new("RGB", (8, 8), (250, 200, 0))) == "red thing, long hair \\(x\\)"
    assert made.caption(Image.new("RGB", (8, 8), (10, 200, 255))) == "long hair \\(x\\)"  # a rating is no tag
    half = made.caption(Image.new("RGB", (4, 8), (0, 0, 0)))  # with as much white beside it
    assert set(half.split(", ")) == {"long hair \\(x\\)", "red thing"}


def test_a_booru_tagger_sees_red_first_to_1_and_tells_by_the_alphabet(tagger):
    made = tagger(1.0, "tags.txt", "zebra\napple_tree\nrating:safe\n")
    assert made.caption(Image.new("RGB", (8, 8), (255, 200, 255))) == "apple tree, zebra"
    assert made.caption(Image.new("RGB", (8, 8), (100, 200, 255))) == "apple tree"


def test_a_list_of_other_length_and_a_broken_model_are_refused(tagger, tmp_path):
    with pytest.raises(BadFile, match="has 3 labels, its list has 1: download both"):
        tagger(1.0, "tags.txt", "zebra\n")
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(BadFile, match="cannot be run as a tagger"):
        open_captioner(str(tmp_path))


def test_without_onnxruntime_a_tagger_is_refused_with_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "tags.txt").write_text("a\n")
    with pytest.raises(BadDataset, match="needs onnxruntime: pip install onnxruntime"):
        open_captioner(str(tmp_path))
    (tmp_path / "tags.txt").unlink()
    with pytest.raises(BadDataset, match=r"does not contain a tagger: put one \.onnx file beside"):
        open_captioner(str(tmp_path))


def test_tags_are_shown_as_prompts_have_them():
    assert [format_tag(tag) for tag in ("long_hair", "0_0", "saber_(fate)")] == ["long hair", "0_0", "saber \\(fate\\)"]
