"""Law: one mutation of a valid text gives the same result, a refusal, a warning, or a result that it plainly says."""

import json
import warnings

import pytest
from PIL import Image

from velatura.cli.arguments import expand_recipe
from velatura.datasets.folder import read_dataset
from velatura.errors import VelaturaError, VelaturaWarning
from velatura.formats.checkpoints.ldm_config import warn_of_yaml
from velatura.formats.checkpoints.prediction import read_yaml_prediction
from velatura.prompts.styles import Style, read_styles
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.rates import LearningRates

SAME, REFUSED, WARNED = "same", "refused", "warned"
STYLES = 'name,prompt,negative_prompt\nink,"ink, lines",blurry\noil,oil paint,\n'
STYLES_RESULT = {"ink": Style("ink", "ink, lines", "blurry"), "oil": Style("oil", "oil paint", "")}
LINE = {"file_name": "cat.png", "text": "a red cat"}
CAPTION = [("cat.png", "a red cat")]


def outcome(read, expected):
    """Say how a mutated text is answered; a silent other result is returned itself, and fails the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = read()
        except VelaturaError as error:
            return REFUSED if "\n" not in str(error) else error
    if any(issubclass(each.category, VelaturaWarning) for each in caught):
        return WARNED
    return SAME if result == expected else result


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (STYLES.replace("\n", "\r\n"), SAME),
        ("\ufeff" + STYLES, SAME),
        (STYLES.replace("name,prompt,negative_prompt", "Name, Prompt, Negative_prompt"), SAME),
        (STYLES + "#note,x,y\n", SAME),
        (STYLES + "\n\n", SAME),
        (STYLES.replace("name,", "title,"), REFUSED),
        (STYLES.replace("prompt,negative_prompt", "positive,negative"), REFUSED),
        (STYLES.replace('"ink, lines"', "ink, lines"), REFUSED),
        (STYLES.replace('"ink, lines"', '"ink, lines'), REFUSED),
        (STYLES.replace("negative_prompt\n", "negative_prompt,extra\n"), WARNED),
        (STYLES.replace("negative_prompt", "negative"), WARNED),
        (STYLES + "ink,other,\n", WARNED),
    ],
)
def test_a_mutated_table_of_styles_is_never_read_otherwise_without_a_word(text, answer):
    assert outcome(lambda: read_styles(text), STYLES_RESULT) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1e-4:50,1e-5", SAME),
        (" 1e-4 : 50 , 1e-5 ", SAME),
        ("1e-4:50, 1e-5,", SAME),
        ("1e-4:50, 1e-5:100", SAME),
        ("1e-4:50%, 1e-5", SAME),
        ("1e-4:50, 1e-5:-1", SAME),
        ("1e-4:50, 1e-5, foo", WARNED),
        ("1e-4:50, 1e-5, 1e-6:500", WARNED),
        ("1e-4:50, 1e-5:80", WARNED),
        ("1e-4:50; 1e-5", REFUSED),
        ("1,0e-4:50, 1e-5", REFUSED),
        ("1e-4:50, foo", REFUSED),
        ("1e-4:fifty, 1e-5", REFUSED),
    ],
)
def test_mutated_rates_are_never_read_otherwise_without_a_word(text, answer):
    def read():
        rates = LearningRates.parse(text, 100)
        for message in rates.warnings:
            warnings.warn(message, VelaturaWarning, stacklevel=2)
        return list(rates)

    assert outcome(read, [1e-4] * 50 + [1e-5] * 50) == answer


PROMPTS = "a red house --n blurry --w 512 --s 30 --d 7\n# a note\na boat --steps 20\n"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (("\n", "\r\n"), SAME),
        (("a red", "\ufeffa red"), SAME),
        (("--n", " \t--n"), SAME),
        (("--n blurry", '--negative "blurry"'), SAME),
        (("--n blurry --w 512", "--w 512 --n blurry"), SAME),
        (("--s 30", "--steps=30"), SAME),
        (("# a note\n", "\n  # another note --s\n"), SAME),
        (("--s 30", "--S 30"), REFUSED),
        (("--s 30", "--foo-unknown 30"), REFUSED),
        (("--s 30", "--s30"), REFUSED),
        (("--s 30", "--s"), REFUSED),
        (("--s 30", "--s 3O"), REFUSED),
        (("--s 30", "--s 30.5"), REFUSED),
        (("--s 30", "--s -30"), REFUSED),
        (("--s 30", "--s 1e400"), REFUSED),
        (("--s 30", "--s 30 30"), REFUSED),
        (("--s 30", "--s 30 --s 20"), REFUSED),
        (("--d 7", "--d 7 # seven"), REFUSED),
        (("--w 512", "--w 512px"), REFUSED),
        (("--w 512", "--w 5120000"), REFUSED),
        (("--w 512 ", "--w 512"), REFUSED),
        (("--n blurry", '--n "blurry'), REFUSED),
        (("--n", "—n"), WARNED),
        (("--n", "-n"), WARNED),
        (("--n", "-- n"), WARNED),
        (("--n blurry --w", "--n blurry -w"), WARNED),
        (("a boat --steps 20", "a boat\nSteps: 20, Sampler: Euler a, CFG scale: 7"), REFUSED),
    ],
)
def test_mutated_prompt_files_are_never_read_otherwise_without_a_word(tmp_path, change, answer):
    def read(text=PROMPTS):
        (tmp_path / "prompts.txt").write_bytes(text.encode())
        return expand_recipe(Recipe(), tmp_path / "prompts.txt", 1, [])

    expected = read()
    assert [(recipe.prompt, recipe.steps) for recipe in expected] == [("a red house", 30), ("a boat", 20)]
    assert PROMPTS.count(change[0]) >= 1
    assert outcome(lambda: read(PROMPTS.replace(*change, 1)), expected) == answer


V_YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
    unet_config:
      params:
        num_heads: 8
        channel_mult: [ 1, 2, 4, 4 ]
"""


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (("\n", "\r\n"), SAME),
        (("model", "\ufeffmodel"), SAME),
        (('"v"', "v"), SAME),
        (('"v"', "'v'  # as it was trained"), SAME),
        (("0.0120", "1.2e-2"), SAME),
        (
            (
                "    linear_start: 0.00085\n    linear_end: 0.0120\n",
                "    linear_end: 0.012\n    linear_start: 8.5e-4\n",
            ),
            SAME,
        ),
        (("model:", "lightning:\n  trainer: {foo_unknown: 3}\nmodel:"), SAME),
        (("    timesteps", "    # parameterization: eps\n    timesteps"), SAME),
        (("parameterization", "parametrization"), WARNED),
        (("parameterization", "Parameterization"), WARNED),
        (('"v"', '"x0"'), WARNED),
        (('"v"', ""), WARNED),
        (("    timesteps", '    parameterization: "eps"\n    timesteps'), WARNED),
        (("0.0120", "0.02"), WARNED),
        (("0.00085", "nan"), WARNED),
        (("1000", "500"), WARNED),
        (("1000", "[1000]"), WARNED),
        (("0.18215", "0.13025"), WARNED),
        (("0.18215", "a lot"), WARNED),
        (("num_heads: 8", "num_heads: 4"), WARNED),
        (("    timesteps", "    beta_schedule: cosine\n    timesteps"), WARNED),
        (("    timesteps", "    foo_unknown: 1\n    timesteps"), WARNED),
        (
            ("    unet_config:\n      params:\n        num_heads: 8", "    unet_config: {params: {num_heads: 4}}"),
            WARNED,
        ),
        (("model:", "foo_unknown:\n- 1\nmodel:"), WARNED),
        (
            (
                "    timesteps",
                "    discretization_config:\n      target: sgm.modules.discretizer.EDMDiscretization\n    x",
            ),
            WARNED,
        ),
    ],
)
def test_a_mutated_yaml_beside_a_checkpoint_is_never_read_otherwise_without_a_word(tmp_path, change, answer):
    def read(text=V_YAML):
        (tmp_path / "x.yaml").write_bytes(text.encode())
        warn_of_yaml(tmp_path / "x.ckpt", 0.18215)
        return read_yaml_prediction(tmp_path / "x.ckpt")

    assert read() == "v_prediction"
    assert V_YAML.count(change[0]) >= 1
    assert outcome(lambda: read(V_YAML.replace(*change)), "v_prediction") == answer


@pytest.mark.parametrize("length", range(0, len(V_YAML), 7))
def test_a_yaml_that_is_cut_short_says_nothing_else(tmp_path, length):
    (tmp_path / "x.yaml").write_text(V_YAML[:length])
    expected = "v_prediction" if '"v' in V_YAML[:length] else None
    assert outcome(lambda: read_yaml_prediction(tmp_path / "x.ckpt"), expected) in {SAME, WARNED}


def write_captions(folder, files):
    Image.new("RGB", (64, 64)).save(folder / "cat.png")
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return lambda: [(example.path.name, example.caption) for example in read_dataset(folder).examples]


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({"cat.txt": "a red cat"}, SAME),
        ({"cat.txt": "\ufeffa red cat\r\n"}, SAME),
        ({"cat.TXT": "a red cat"}, SAME),
        ({"cat.png.txt": "a red cat"}, SAME),
        ({"cat.txt": ""}, WARNED),
        ({"cat.txt": "a red cat".encode("utf-16")}, WARNED),
        ({"cat.txt": b"a r\xe9d cat"}, WARNED),
        ({"cat.txt": b"\xff\xd8\xff\xe0\0\x10JFIF"}, REFUSED),
        ({"metadata.csv": "file_name,text\ncat.png,a r\u00e9d cat\n".encode("cp1252")}, WARNED),
        ({"metadata.jsonl": json.dumps(LINE).encode("utf-16")}, REFUSED),
        ({"cat.txt": "a red cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"}, WARNED),
        ({"metadata.jsonl": json.dumps(LINE)}, SAME),
        ({"metadata.jsonl": json.dumps(dict(reversed(LINE.items())))}, SAME),
        ({"metadata.jsonl": json.dumps(LINE) + "\n\n"}, SAME),
        ({"metadata.jsonl": json.dumps(LINE)[:-1]}, REFUSED),
        ({"metadata.jsonl": json.dumps(LINE)[:-1] + ', "text": "another"}'}, REFUSED),
        ({"metadata.jsonl": json.dumps(LINE | {"text": 3})}, REFUSED),
        ({"metadata.jsonl": json.dumps(LINE | {"text": ""})}, REFUSED),
        ({"metadata.jsonl": json.dumps({"file_name": "cat.png", "txt": "a red cat"})}, REFUSED),
        ({"metadata.jsonl": json.dumps(LINE | {"width": 64})}, WARNED),
        ({"metadata.jsonl": json.dumps(LINE) + "\n" + json.dumps(LINE | {"text": "another"})}, WARNED),
        ({"metadata.jsonl": json.dumps(LINE) + "\n" + json.dumps(LINE | {"file_name": "dog.png"})}, WARNED),
        ({"metadata.csv": "file_name,text\ncat.png,a red cat\n"}, SAME),
        ({"metadata.csv": "text,file_name\na red cat,cat.png\n"}, SAME),
        ({"metadata.csv": "file_name,text\ncat.png,a red, old cat\n"}, REFUSED),
        ({"metadata.csv": "file_name,words\ncat.png,a red cat\n"}, WARNED),
        ({"metadata.csv": "file_name,text,width\ncat.png,a red cat,64\n"}, WARNED),
        ({"cat.json": json.dumps({"caption": "a red cat"})}, SAME),
        ({"cat.json": json.dumps({"tags": ["a red cat"]})}, SAME),
        ({"cat.json": json.dumps({"words": "a red cat"})}, WARNED),
        ({"cat.json": json.dumps({"caption": "a red cat", "score": 1})}, WARNED),
        ({"cat.json": '{"caption": "a", "caption": "b"}'}, REFUSED),
        ({"cat.json": "[1"}, REFUSED),
    ],
)
def test_mutated_captions_are_never_learned_otherwise_without_a_word(tmp_path, files, answer):
    assert outcome(write_captions(tmp_path, files), CAPTION) == answer
