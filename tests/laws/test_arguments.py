"""Law 9: an argument of a wrong type is refused in one clear line, whatever function and parameter it is for."""

import contextlib
import inspect
import warnings
from collections.abc import Callable

import pytest
import torch
from PIL import Image

import velatura
from velatura.arguments import matches
from velatura.errors import VelaturaError

FUNCTIONS = sorted(name for name in velatura.__all__ if inspect.isfunction(getattr(velatura, name)))
NOBODY = "<hypernet:nobody:1>"  # so that a value that is taken after all leads to no picture
QUICK = {"steps": 1, "seed": 1}


@pytest.fixture
def calls(tiny, hyper, lora, difference, tmp_path):
    """Each public function with arguments that it takes, or refuses at once by name."""
    photos, taken, file = velatura.tiny_pictures("neon"), tmp_path / "taken", tmp_path / "inca.safetensors"
    taken.mkdir()
    (taken / "here.txt").write_text("so that nothing is trained")
    velatura.save(hyper(), file)
    base, overlay = {"base": tiny}, {"overlay": hyper()}
    [example, *_] = velatura.read_dataset(photos).examples
    picture = Image.new("RGB", (64, 64))
    picture.save(taken / "plain.png")
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "no.safetensors"
    given: dict[str, dict[str, object]] = {
        "aesthetic_from": {**base, "folder": tmp_path / "empty"},
        "attach": {"target": tiny, **overlay},
        "attach_all": {"target": tiny, "overlays": [(hyper(), 1.0)]},
        "bake": {**base, "overlays": []},
        "combine": {"overlays": [(lora(), 1.0)]},
        "extract": {"base": missing, "other": missing},
        "generate": {**base, "prompt_or_recipe": NOBODY, **QUICK},
        "generate_many": {**base, "prompts_or_recipes": [NOBODY], **QUICK},
        "generate_stream": {**base, "prompts_or_recipes": [NOBODY], **QUICK},
        "grid": {**base, "recipe": NOBODY, "x": ("steps", [1])},
        "loss_weights": {"example": example, "size": (64, 64), "latent_size": (16, 16)},
        "make_class_pictures": {**base, "folder": tmp_path / "empty", "prompt": "a robot", "count": 0},
        "measure": {"pictures": tmp_path / "empty", "references": tmp_path / "empty"},
        "measure_retention": {"merged": missing, "parents": [missing]},
        "merge": {"base": missing, "other": missing},
        "open_base": {"path": missing},
        "open_overlay": {"path": file},
        "read_dataset": {"folder": photos},
        "resume": {**base, "run": taken},
        "save": {"overlay_or_base": hyper(), "path": tmp_path / "out.jpg"},
        "save_dreambooth": {"output_format": "sketch", **base, "difference": difference(), "path": tmp_path / "x"},
        "study": {**base, "pictures": tmp_path / "empty", "out": tmp_path / "study"},
        "sweep": {
            **base,
            "kind": "lora",
            "pictures": tmp_path / "empty",
            "tries": {"rank": [4, 8]},
            "out": tmp_path / "sweep",
        },
        "template_lines": {"template": "style"},
        "tiny": {},
        "tiny_pictures": {"name": "neon"},
        "train": {**base, **overlay, "folder": tmp_path / "empty", "out": taken},
        "tune": {**base, "overlay": missing, "strengths": [1.0], "prompts": ["a", "b"], "steps": 1},
        "Hypernetwork.for_base": {**base},
        "Lora.for_base": {**base},
        "Embedding.for_base": {**base, "name": "inca"},
        "Difference.for_base": {**base},
        "Difference.from_bases": {**base, "other": tiny},
        "Recipe.from_image": {"path": taken / "plain.png"},
        "Plan.preset": {"kind": "hypernet", "family": "tiny"},
        "Library": {"cache": tmp_path},
    }
    with contextlib.chdir(tmp_path):
        yield {name: (find(name), arguments) for name, arguments in given.items()}


def find(name: str) -> Callable[..., object]:
    found: object = velatura
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    return found


CLASS_METHODS = (
    "Hypernetwork.for_base",
    "Lora.for_base",
    "Embedding.for_base",
    "Difference.for_base",
    "Difference.from_bases",
    "Recipe.from_image",
    "Plan.preset",
    "Library",
)


def wrong_values(tiny, overlay) -> list[object]:
    return [None, 3, "x", object(), [3], torch.ones(2, 2), overlay, tiny, {}]


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASS_METHODS])
def test_a_wrong_argument_is_refused_in_one_line(name, calls, tiny, hyper):
    function, given = calls[name]
    wrong = wrong_values(tiny, hyper())
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for value in wrong:
            if name.endswith("for_base") and matches(value, annotation(function, parameter)):
                continue  # taken, and another overlay is built
            positional = (value,) if parameter.kind is parameter.VAR_POSITIONAL else ()
            keywords = given if positional else {**given, parameter.name: value}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = outcome_of(function, positional, keywords)
            assert "\n" not in outcome, (parameter.name, value)
            assert len(outcome) < 600, (parameter.name, value, outcome)


def annotation(function, parameter):
    """The evaluated annotation of a parameter, of which only ours are evaluated at all."""
    try:
        return eval(parameter.annotation, inspect.unwrap(function).__globals__)
    except (NameError, TypeError):
        return None


def outcome_of(function, positional, keywords) -> str:
    """The error's line, "" if there was none; any error that is not ours ends the test."""
    try:
        result = function(*positional, **keywords)
        if inspect.isgenerator(result):
            result.close()
        if isinstance(result, velatura.Attachment):
            result.detach()
        if isinstance(result, list):
            for attachment in result:
                if isinstance(attachment, velatura.Attachment):
                    attachment.detach()
    except VelaturaError as error:
        return str(error)
    return ""


def test_every_public_function_is_held_to_it(calls):
    assert set(FUNCTIONS) <= set(calls)
