"""What a sweep tries is checked without torch, and counted as successive halving counts it."""

import subprocess
import sys
import tomllib
from importlib.resources import files

import pytest

from velatura.cli.app import main
from velatura.errors import BadPlan, UnknownName, VelaturaError, ignore_warnings
from velatura.overlays.deltas import DELTAS
from velatura.overlays.structure import ACTIVATIONS, WEIGHT_INITS
from velatura.studies.candidates import (
    PRESET_FAMILIES,
    CandidateOptions,
    check_before_opening,
    make_candidates,
    parse_tries,
    preset_for_steps,
    round_steps,
    survivor_counts,
    tried_texts,
)
from velatura.studies.overlay_arguments import ACTIVATION_NAMES, ALGORITHM_NAMES, INIT_NAMES
from velatura.training.plan import Plan
from velatura.training.rates import fit_rate

OPTIONS = CandidateOptions("hypernet", "style", "tiny", 160, 0, {}, None)


def tried(*texts, **changes):
    with ignore_warnings():  # of rates that end early
        return make_candidates(parse_tries(texts), OPTIONS._replace(**changes))


def test_all_combinations_are_candidates_with_the_preset_for_the_rest():
    found = tried("layers=1,2,1|1,2,2,1", "rate=1e-3|3e-3:100, 1e-3")
    assert [candidate.values for candidate in found] == [
        {"layers": "1,2,1", "rate": "1e-3"},
        {"layers": "1,2,1", "rate": "3e-3:100, 1e-3"},
        {"layers": "1,2,2,1", "rate": "1e-3"},
        {"layers": "1,2,2,1", "rate": "3e-3:100, 1e-3"},
    ]
    assert found[2].overlay["layers"] == (1, 2, 2, 1)
    assert found[2].overlay["activation"] == "relu"  # as `velatura train hypernet` has it
    assert (found[1].plan.learning_rate, found[1].plan.steps) == ("3e-3:100, 1e-3", 160)


def test_some_of_many_combinations_are_drawn_by_the_seed():
    texts = ("dropout=" + "|".join(f"0.{number}" for number in range(1, 10)), "layer-norm=true|false")
    drawn = tried(*texts, trials=5)
    assert len(drawn) == 5
    assert [candidate.values for candidate in drawn] == [candidate.values for candidate in tried(*texts, trials=5)]
    assert [candidate.values for candidate in drawn] != [c.values for c in tried(*texts, trials=5, seed=1)]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["layers=1,2,1|1,x,1"], "the hypernet's layers.1 is 'x'"),
        (["layers=1,2,1|1,2"], "begin and end with 1"),
        (["layers"], "rate=1e-3|3e-3"),
        (["rate=1e-3|"], "empty value"),
        (["rate=1e-3", "rate=2e-3"], "tried twice"),
        (["rate=1e-3|2e-3", "lr=1e-3"], "the same field"),
        (["rate=1e-3"], "two or more trials"),
        (["rate=1e-3|1e-3"], "two or more trials"),
        (["rate=1e-3|fast"], "fast"),
        (["rate=1e-3|1e-3:50"], "ends at step 50 of 160"),
        (["steps=10|20"], "--steps"),
        (["pixels=64|128"], "could not be compared"),
        (["cache=true|false"], "does not change what is learned"),
        (["activation=relu|rellu"], "relu"),
        (["layerz=1,2,1|1,2,2,1"], "layers"),
        (["optimizer=adamw|adan"], "adan"),
        (["dropout=" + "|".join(f"{n / 1000}" for n in range(300))], "--trials"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_line(texts, words):
    with pytest.raises((BadPlan, UnknownName), match=r"^[^\n]+$") as error:
        tried(*texts)
    assert words in str(error.value)


def test_other_kinds_have_their_own_settings():
    assert tried("rank=4|16", kind="lora")[0].overlay["rank"] == 4
    assert tried("vectors=2|4", kind="embedding")[1].overlay == {"vectors": 4, "initial": "*"}
    with pytest.raises(UnknownName, match="rank"):
        tried("rank=4|8")
    with pytest.raises(UnknownName, match="hypernet"):
        tried("rank=4|8", kind="hypernetz")
    with pytest.raises(VelaturaError, match="algorithm"):
        tried("algorithm=lora|lorra", kind="lora")


def test_numbers_from_python_are_tried_as_they_are():
    layers = [(1, 1 / 3, 1), (1.0, 1e-7, 1)]
    texts = tried_texts("layers", layers)
    assert texts == ["1,0.3333333333333333,1", "1,1e-07,1"]
    assert [candidate.overlay["layers"] for candidate in tried("layers=" + "|".join(texts))] == layers
    assert tried_texts("rate", [0.1 + 0.2, 1e-3, True, None]) == ["0.30000000000000004", "0.001", "true", "none"]


def test_what_one_family_of_bases_allows_is_not_refused_before_the_base_is_open():
    # Two trials have two rounds, and the first is of steps / factor: of 2 steps for SD1, of 1 for SDXL
    tries, options = parse_tries(["rank=4|16"]), OPTIONS._replace(kind="lora", steps=None)
    assert [preset_for_steps("lora", family, "style").steps for family in PRESET_FAMILIES] == [2000, 1500]
    check_before_opening(tries, options, 800, PRESET_FAMILIES)
    with pytest.raises(BadPlan, match="too few"):
        check_before_opening(tries, options, 800, ["SDXL"])


def test_families_with_presets_of_their_own_are_looked_at():
    presets = files("velatura.training") / "presets"
    sections = {name for file in presets.iterdir() for name in tomllib.loads(file.read_text("utf-8"))}
    assert sections - {"any", "tiny"} == set(PRESET_FAMILIES[1:])


@pytest.mark.parametrize("kind", ["hypernet", "lora", "embedding", "dreambooth"])
def test_all_rates_of_a_preset_end_at_the_same_share_of_fewer_steps(kind):
    preset, fitted = Plan.preset(kind, "tiny"), preset_for_steps(kind, "tiny", "style", 30)
    for field in ("learning_rate", "text_rate", "word_rate"):
        rate = getattr(preset, field)
        assert getattr(fitted, field) == (rate and fit_rate(rate, preset.rates().end, 30))
    assert fitted.warmup < fitted.steps == 30


@pytest.mark.parametrize("field", ["snapshot_every", "patience", "validation_folder", "steps"])
def test_what_the_sweep_sets_cannot_be_set(field):
    with pytest.raises(BadPlan, match=f"^{field} cannot be"):
        tried("rate=1e-3|3e-3", fields={field: 4})


def test_names_of_choices_are_those_that_overlays_have():
    assert set(ACTIVATION_NAMES) == set(ACTIVATIONS)
    assert set(INIT_NAMES) == set(WEIGHT_INITS)
    assert set(ALGORITHM_NAMES) - {"locon"} <= set(DELTAS)


def test_rounds_are_those_of_successive_halving():
    # Jamieson and Talwalkar 2016: n trials in ceil(log n) + 1 rounds, each with the same number of steps in all
    assert survivor_counts(8, 2) == [8, 4, 2, 1]
    assert round_steps(8, 160, 2) == [20, 40, 80, 160]
    assert survivor_counts(9, 3) == [9, 3, 1]
    assert round_steps(9, 270, 3) == [30, 90, 270]
    assert survivor_counts(5, 2) == [5, 3, 2, 1]
    with pytest.raises(BadPlan, match="16 steps or more"):
        round_steps(8, 15, 2)
    with pytest.raises(BadPlan, match="factor is 1"):
        round_steps(8, 160, 1)


def test_a_wrong_value_on_the_command_line_is_refused_before_torch_is_loaded():
    words = ["sweep", "hypernet", "neon", "--try", "layers=1,2,1|1,x,1"]
    program = f"import sys\nfrom velatura.cli.app import main\nprint(main({words!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: the hypernet's layers")
    assert done.stderr.count("\n") == 1


def test_a_sweep_without_values_is_refused(capsys):
    assert main(["sweep", "hypernet", "neon"]) == 2
    assert "--try" in capsys.readouterr().err
