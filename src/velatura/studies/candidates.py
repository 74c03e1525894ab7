"""Candidates of a sweep: every combination of the values to try, checked without torch and without the base."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from velatura.card import printable_text
from velatura.errors import (
    OTHER_PROGRAMS_WORDS,
    BadPlan,
    UnknownName,
    VelaturaError,
    explain_validation_error,
    ignore_warnings,
    warn,
)
from velatura.studies.overlay_arguments import ARGUMENTS
from velatura.training.plan import Plan
from velatura.training.rates import fit_rate

VALUE_SEPARATOR = "|"
MAX_CANDIDATES = 256
MIN_ROUND_STEPS = 2  # of the first round
FEW_ROUND_STEPS = 10  # below it the first round tells little
VALIDATION_ROWS = 32  # half of them at high noise
PRESET_FAMILIES = ("SD1", "SDXL")  # of bases other than tiny: all others have the presets of the first

# Fields of a plan that the sweep alone sets, and that cannot be set for all trials either
SWEEP_FIELDS = ("snapshot_every", "patience", "validation_folder")

# Fields of a plan that cannot be tried, and why
UNTRIED_FIELDS = {
    "steps": "every trial has the same steps (--steps)",
    **dict.fromkeys(
        ("pixels", "shape", "latents", "template", "zero_terminal_snr", "class_weight"),
        "it changes what the validation loss measures, so losses could not be compared",
    ),
    **dict.fromkeys(SWEEP_FIELDS, "the sweep sets it"),
    **dict.fromkeys(("keep_last", "keep_every", "validation_pictures"), "the sweep sets it"),
    **dict.fromkeys(
        ("preview_every", "preview_prompt", "preview_seeds", "end_sheet", "tune", "cache", "a1111", "tensorboard"),
        "it does not change what is learned",
    ),
}


class Candidate(NamedTuple):
    """One combination of values.

    Attributes:
        number: Counts from 1.
        values: The values that are tried, as texts, by the names that the user gave.
        overlay: All arguments by which the overlay is made.
        plan: The whole plan of its training, without folders.
    """

    number: int
    values: dict[str, str]
    overlay: dict[str, Any]
    plan: Plan


class CandidateOptions(NamedTuple):
    """What all candidates share.

    Attributes:
        kind: Kind of overlay.
        purpose: "style" or "subject": the preset.
        family: The base's family; one without a preset of its own gets the general values.
        steps: Steps of a whole training, None: those of the preset.
        seed: Seed of trainings, and of the choice if there are more combinations than `trials`.
        fields: Fields of the plan that differ from the preset in all trials.
        trials: The most combinations to take, None: all.
    """

    kind: str
    purpose: str
    family: str
    steps: int | None
    seed: int
    fields: Mapping[str, object]
    trials: int | None


def parse_tries(assignments: Sequence[str]) -> dict[str, list[str]]:
    """Return the values to try by name, of texts such as "layers=1,2,1|1,2,2,1".

    Raises:
        BadPlan: A text has no name or no value, or a name is given twice.
    """
    tries: dict[str, list[str]] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        name = name.strip()
        if not (name and sign and text.strip()):
            raise BadPlan(f'"{assignment}" has no name and values to try: write "rate=1e-3|3e-3"')
        if name in tries:
            raise BadPlan(f'{name} is tried twice: write all its values once, "{name}=A{VALUE_SEPARATOR}B"')
        tries[name] = [text]
    return {name: tried_texts(name, texts) for name, texts in tries.items()}


def tried_texts(name: str, values: Sequence[object]) -> list[str]:
    """Return values to try as texts, each once; a text may hold several, separated by |.

    Args:
        name: What they are values of.
        values: Texts, numbers, True or False, None, or sequences of numbers.

    Raises:
        BadPlan: A value is empty.
    """
    listed = [values] if isinstance(values, str) else values
    texts: list[str] = []
    for value in listed:
        parts = value.split(VALUE_SEPARATOR) if isinstance(value, str) else [_as_text(value)]
        texts += [part.strip() for part in parts]
    if not texts or not all(texts):
        raise BadPlan(f"{name} has an empty value to try: leave it out, or write none")
    return list(dict.fromkeys(texts))


def _as_text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(_as_text, cast("Sequence[object]", value)))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def make_candidates(tries: Mapping[str, Sequence[str]], options: CandidateOptions) -> list[Candidate]:
    """Return all combinations of the values to try, or some drawn at random, every one checked.

    Raises:
        UnknownName: A kind, a name or a choice does not exist.
        BadPlan: A value is out of range, or there are fewer than two combinations or too many.
    """
    if options.kind not in ARGUMENTS:
        raise UnknownName.with_suggestions("kind of overlay to sweep", options.kind, ARGUMENTS)
    if options.trials is not None and options.trials < 2:
        raise BadPlan(f"trials is {options.trials}: compare two or more")
    if options.steps is not None and options.steps < 1:
        raise BadPlan(f"steps is {options.steps}: give 1 or more")
    _check_names(options.kind, [*tries], options.fields)
    combinations = list(product(*tries.values()))
    if options.trials is not None and len(combinations) > options.trials:
        chosen = sorted(Random(options.seed).sample(range(len(combinations)), options.trials))
        combinations = [combinations[number] for number in chosen]
    if len(combinations) < 2:
        raise BadPlan('a sweep compares two or more trials: give several values, as --try "rate=1e-3|3e-3"')
    if len(combinations) > MAX_CANDIDATES:
        raise BadPlan(
            f"the values have {len(combinations):,} combinations, and {MAX_CANDIDATES} is the most: "
            "try fewer values, or draw some at random with --trials 32"
        )
    preset = _preset(options)
    candidates: list[Candidate] = []
    for number, values in enumerate(combinations, 1):
        texts = dict(zip(tries, values, strict=True))
        candidates.append(_make_candidate(number, texts, preset, options.kind))
    return candidates


def check_before_opening(
    tries: Mapping[str, Sequence[str]], options: CandidateOptions, factor: int, families: Sequence[str]
) -> None:
    """Refuse, before a base is open, what cannot be tried on any family that it may be of.

    Args:
        tries: Values to try, as texts.
        options: What all candidates share; its family does not count.
        factor: One of so many trials goes on.
        families: The families whose presets the base may get.

    Raises:
        UnknownName, BadPlan: See `make_candidates` and `round_steps`.
    """
    errors: list[VelaturaError] = []
    for family in families:
        try:
            with ignore_warnings():  # the sweep warns
                candidates = make_candidates(tries, options._replace(family=family))
                round_steps(len(candidates), candidates[0].plan.steps, factor)
        except VelaturaError as error:
            errors.append(error)
    if len(errors) == len(families):
        raise errors[0]


def _check_names(kind: str, names: Sequence[str], fields: Mapping[str, object]) -> None:
    known = {*ARGUMENTS[kind].model_fields, *Plan.model_fields} - UNTRIED_FIELDS.keys()
    fields_seen: dict[str, str] = {}
    for name in names:
        field = field_name(kind, name)
        if field in UNTRIED_FIELDS and field not in ARGUMENTS[kind].model_fields:
            raise BadPlan(f"{name} cannot be tried: {UNTRIED_FIELDS[field]}")
        if field not in known:
            raise UnknownName.with_suggestions(f"setting of a {kind} to try", printable_text(name), known)
        if field in fields_seen or field in fields:
            other = fields_seen.get(field, field)
            raise BadPlan(f"{name} and {other} set the same field: give one of them")
        fields_seen[field] = name
    for field in fields:
        if field in {*SWEEP_FIELDS, "steps"}:
            raise BadPlan(f"{field} cannot be set for all trials: {UNTRIED_FIELDS[field]}")


def field_name(kind: str, name: str) -> str:
    """Return the field that a name stands for, which may be a word of the command line or of another program."""
    name = name.removeprefix("--").replace("-", "_")
    if name in ARGUMENTS[kind].model_fields:
        return name
    return OTHER_PROGRAMS_WORDS.get(name, name) if name not in Plan.model_fields else name


def preset_for_steps(kind: str, family: str, purpose: str, steps: int | None = None, **fields: object) -> Plan:
    """Return the preset of a kind for another number of steps, its rates and its warm-up fitted to them.

    Args:
        kind: The kind of overlay.
        family: The base's family.
        purpose: "style" or "subject".
        steps: The steps; None: the preset's own.
        **fields: Further fields of the plan that differ from the preset.
    """
    with ignore_warnings():
        preset = Plan.preset(kind, family, purpose)
    if fields.get("optimizer") == "prodigy":
        preset = preset.replace(text_rate=None, word_rate=None)  # it finds one rate for all parameters
    planned = preset.rates().end
    steps = planned if steps is None else steps
    given = {name: getattr(preset, name) for name in ("learning_rate", "text_rate", "word_rate")}
    rates = {name: fit_rate(rate, planned, steps) for name, rate in given.items() if rate is not None}
    return preset.replace(**({"steps": steps, "warmup": min(preset.warmup, steps - 1), **rates} | fields))


def _preset(options: CandidateOptions) -> Plan:
    """Return the plan of all trials, without what is tried."""
    settings: dict[str, object] = {
        "seed": options.seed,
        "validation_pictures": VALIDATION_ROWS,
        "patience": 0,
        "keep_last": 1,
        "keep_every": 0,
        "preview_every": 0,
        "end_sheet": False,
        "tune": False,
    }
    settings |= dict(options.fields)
    return preset_for_steps(options.kind, options.family, options.purpose, options.steps, **settings)


def _make_candidate(number: int, values: dict[str, str], preset: Plan, kind: str) -> Candidate:
    arguments_class = ARGUMENTS[kind]
    fields = {field_name(kind, name): text for name, text in values.items()}
    given = {name: text for name, text in fields.items() if name in arguments_class.model_fields}
    plan_fields = {name: None if text == "none" else text for name, text in fields.items() if name not in given}
    try:
        arguments = arguments_class.model_validate(given)
    except ValidationError as error:
        descriptions = {name: field.description for name, field in arguments_class.model_fields.items()}
        raise BadPlan(explain_validation_error(error, kind, descriptions)) from None
    if plan_fields.get("optimizer") == "prodigy":
        preset = preset.replace(text_rate=None, word_rate=None)  # it finds one rate for all parameters
    plan = preset.replace(**plan_fields)
    if plan.rates().end < plan.steps:
        raise BadPlan(
            f'the rate "{plan.learning_rate}" ends at step {plan.rates().end} of {plan.steps}: every trial of a sweep '
            "has the same steps, so let its last part go on"
        )
    return Candidate(number, values, arguments.model_dump(), plan)


def survivor_counts(count: int, factor: int) -> list[int]:
    """Return how many trials train in each round of successive halving: of 9 by a factor of 3, 9, 3 and 1.

    Jamieson and Talwalkar 2016, Non-stochastic Best Arm Identification and Hyperparameter Optimization.
    """
    counts = [count]
    while counts[-1] > 1:
        counts.append(math.ceil(counts[-1] / factor))
    return counts


def round_steps(count: int, steps: int, factor: int) -> list[int]:
    """Return the step to which every round trains: each has `factor` times as many steps as the one before.

    Raises:
        BadPlan: The factor is below 2, or the steps are too few for so many rounds.
    """
    if factor < 2:
        raise BadPlan(f"the factor is {factor}: of every 2 trials or more, one goes on")
    rounds = len(survivor_counts(count, factor))
    first = steps // factor ** (rounds - 1)
    if first < MIN_ROUND_STEPS:
        least = MIN_ROUND_STEPS * factor ** (rounds - 1)
        raise BadPlan(
            f"{count} trials need {rounds} rounds, and {steps} steps are too few for them: give {least} steps or more, "
            "a larger factor, or fewer trials"
        )
    if first < FEW_ROUND_STEPS:
        warn(
            f"the first round is only {first} steps, after which little can be told: give "
            f"{FEW_ROUND_STEPS * factor ** (rounds - 1)} steps or more, or fewer trials"
        )
    return [first * factor**number for number in range(rounds - 1)] + [steps]


def training_command(candidate: Candidate, kind: str, pictures: Path, common: Sequence[str]) -> str:
    """Return the command that trains a candidate on all pictures, without a sweep.

    Args:
        candidate: The candidate.
        kind: The kind of overlay.
        pictures: The folder of all pictures.
        common: Options that all candidates share, such as "--for" and "style".
    """
    words = ["velatura", "train", kind, str(pictures), *common]
    words += ["--steps", str(candidate.plan.steps), "--rate", candidate.plan.learning_rate]
    words += ["--seed", str(candidate.plan.seed)]
    for given_name, text in candidate.values.items():
        field = field_name(kind, given_name)
        if field in ARGUMENTS[kind].model_fields:
            words += _flag(kind, field, text)
        elif field not in {"learning_rate", "seed"}:
            words += ["--set", f"{field}={text}"]
    return shlex.join("".join(filter(str.isprintable, word)) for word in words)


def _flag(kind: str, field: str, text: str) -> list[str]:
    """Return the words that set an argument of the overlay on the command line."""
    default = ARGUMENTS[kind].model_fields[field].default
    flag = f"--{field.replace('_', '-')}"
    if not isinstance(default, bool):
        return [] if text == "none" else [flag, text]
    is_on = ARGUMENTS[kind].model_validate({field: text}).model_dump()[field]
    if is_on == default:
        return []
    return [flag] if is_on else [f"--no-{field.replace('_', '-')}"]
