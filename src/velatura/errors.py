"""Tree of errors and warnings. Every message says what was found, what was expected and what to do."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

# Between a user's call and ours stand their wrappers: decorators of torch, contextlib, pydantic's validators, deepcopy.
WRAPPER_PACKAGES = frozenset({"contextlib", "copy", "functools", "pydantic", "torch", "velatura"})

MAX_SUGGESTIONS = 5
MAX_INPUT_LENGTH = 200  # characters of a wrong value that a message shows: values come from files too

# What diffusers, k-diffusion, kohya, peft and A1111 call the fields of our recipes and plans
OTHER_PROGRAMS_WORDS = {
    "batch": "batch_size",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "clip_stop_at_last_layers": "clip_skip",
    "denoising_strength": "denoising",
    "epochs": "steps",
    "gradient_accumulation_steps": "accumulation",
    "guidance_scale": "guidance",
    "image_cfg_scale": "image_guidance",
    "image_guidance_scale": "image_guidance",
    "learning_rate_schedule": "schedule",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "max_grad_norm": "gradient_norm",
    "max_train_steps": "steps",
    "min_snr_gamma": "min_snr",
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "prior_loss_weight": "class_weight",
    "rate": "learning_rate",
    "resolution": "pixels",
    "sampler_name": "sampler",
    "train_batch_size": "batch_size",
}

# Messages by their kind, while a block gathers them
GATHERED_WARNINGS: ContextVar[dict[str, list[str]] | None] = ContextVar("gathered_warnings", default=None)
# Takes the messages of this thread's warnings; without it they go through Python's warnings, which threads share
WARNING_RECEIVER: ContextVar[Callable[[str], object] | None] = ContextVar("warning_receiver", default=None)


class VelaturaError(Exception):
    """A mistake that the user can correct. The command line shows it as one line, without a traceback."""


class VelaturaWarning(UserWarning):
    """A warning about something unusual that does not stop the work."""


class BadFile(VelaturaError):
    """A file that is damaged, dangerous, or in a format that velatura does not read."""


class WrongBase(VelaturaError):
    """An overlay, or a part of a base, whose widths do not fit the base: it was made for another family."""


class UnsupportedBase(VelaturaError):
    """A base whose architecture velatura does not open, or whose layers do not fit an overlay."""


class BadArgument(VelaturaError, TypeError):
    """An argument of a type that a function does not take; a TypeError too."""


class BadOverlay(VelaturaError):
    """An overlay whose structure cannot be built."""


class BadStrength(VelaturaError):
    """A strength that is NaN or infinite, or whose length differs from the batch."""


class NoEffect(VelaturaError):
    """A request that would change nothing."""


class BadPrompt(VelaturaError):
    """A prompt that cannot be parsed. The message points at the position of the mistake."""


class BadRecipe(VelaturaError):
    """A recipe with an invalid field, or a picture without a recipe."""


class NanLatents(VelaturaError):
    """Latents that became NaN or infinite during sampling."""


class BadPlan(VelaturaError):
    """A training plan with an invalid field."""


class BadDataset(VelaturaError):
    """A dataset folder that is missing or empty, or holds a damaged picture or one without a caption."""


class MissingCaption(BadDataset):
    """A picture of a dataset folder without a caption."""


class TrainingDiverged(VelaturaError):
    """A training whose loss became NaN or infinite."""


class ProcessFailed(VelaturaError):
    """A distributed training in which one process failed or stopped."""


class WorkerLost(Exception):
    """The process of an actor on a cluster ended, or its machine does not answer: its work goes on elsewhere."""


class BadSettings(VelaturaError):
    """Settings of the server that are out of range, or that contradict one another."""


class AlreadyExists(VelaturaError):
    """A destination that already exists."""


class DownloadFailed(VelaturaError):
    """A file that cannot be downloaded, or whose size or hash differs from what the service states."""


class UnknownName(VelaturaError):
    """An unknown name: of a sampler, an overlay, a base or a device."""

    @classmethod
    def with_suggestions(cls, kind: str, name: str, known: Iterable[str], where: str = "") -> Self:
        """Build the error with up to three similar names, or else the known names.

        Args:
            kind: What the name stands for, such as "sampler".
            name: The unknown name.
            known: All names that exist.
            where: The place that was searched, such as a folder.
        """
        names = sorted(known, key=str.lower)
        missing = f"no {kind} is called {name!r}" + (f" in {where}" if where else "")
        if not names:
            return cls(f"{missing}, and none is known {'there' if where else 'at all'}: add one first")
        by_lower = {candidate.lower(): candidate for candidate in names}
        stem = re.sub(r"^.*[/\\]|\.(safetensors|ckpt|pt|pth|bin)$", "", name.lower())  # of a file
        close = dict.fromkeys(
            found for key in (name.lower(), stem) for found in get_close_matches(key, by_lower, 3, 0.5)
        )
        suggestions = [by_lower[candidate] for candidate in close][:3]
        if suggestions:
            return cls(f"{missing}: did you mean {' or '.join(repr(candidate) for candidate in suggestions)}?")
        choices = ", ".join(repr(candidate) for candidate in names[:10]) + (", ..." if len(names) > 10 else "")
        return cls(f"{missing}: choose one of {choices}")


def quantity(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, "1 layer" or "1,200 layers".

    Args:
        count: The number.
        noun: What is counted, in the singular.
        plural: Its plural, if that is not the noun with an s.
    """
    return f"{count:,} {choose_number(count, noun, plural or f'{noun}s')}"


def choose_number(count: int, singular: str, plural: str) -> str:
    """Return the word for one or for several: "it is" or "they are"."""
    return singular if count == 1 else plural


@contextmanager
def gather_warnings() -> Generator[None]:
    """Within the block, keep warnings of a kind back, and give one of each kind at its end, with the number of others.

    It is for blocks that read many pictures. A block inside another one leaves the warnings to the outer one.
    """
    if GATHERED_WARNINGS.get() is not None:
        yield
        return
    gathered: dict[str, list[str]] = {}
    token = GATHERED_WARNINGS.set(gathered)
    try:
        yield
    finally:
        GATHERED_WARNINGS.reset(token)
        for first, *others in gathered.values():
            warn(f"{first} (and {len(others)} more of this kind)" if others else first)


def warn_of_picture(kind: str, message: str) -> None:
    """Warn of one of many pictures: within `gather_warnings`, all warnings of a kind become one.

    Args:
        kind: What the warnings have in common.
        message: What was found and what it means for the result, in one line.
    """
    gathered = GATHERED_WARNINGS.get()
    if gathered is None:
        warn(message)
    else:
        gathered.setdefault(kind, []).append(message)


@contextmanager
def redirect_warnings(receiver: Callable[[str], object]) -> Generator[None]:
    """Within the block, give the messages of our own warnings to a function; other threads are not affected.

    A `gather_warnings` around the block does not get them.

    Args:
        receiver: Called with each message.
    """
    token, outer_gathered = WARNING_RECEIVER.set(receiver), GATHERED_WARNINGS.set(None)
    try:
        yield
    finally:
        GATHERED_WARNINGS.reset(outer_gathered)
        WARNING_RECEIVER.reset(token)


@contextmanager
def ignore_warnings() -> Generator[None]:
    """Within the block, drop our own warnings; other threads are not affected."""
    with redirect_warnings(lambda _message: None):
        yield


def warn(message: str, category: type[Warning] = VelaturaWarning) -> None:
    """Warn in the name of the code that called this package, however deep inside it the warning arises.

    Args:
        message: What was found and what it means for the result, in one line.
        category: The class of the warning.
    """
    receiver = WARNING_RECEIVER.get()
    if receiver is not None and issubclass(category, VelaturaWarning):
        receiver(message)
        return
    level, frame = 2, sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # level 1 is this function
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in WRAPPER_PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def explain_validation_error(error: ValidationError, owner: str, fields: Mapping[str, str | None]) -> str:
    """Say in one line what pydantic found wrong with the fields of a value.

    Args:
        error: What pydantic raised.
        owner: What the fields belong to, as "recipe" or "plan".
        fields: Every field that the value has, with its description in words, if there is one.

    Returns:
        One clause for each fault. An unknown field is answered with the name that velatura uses for it, or with
        five similar names at most.
    """
    return "; ".join(_explain_fault(fault, owner, fields) for fault in error.errors())


def _explain_fault(fault: ErrorDetails, owner: str, fields: Mapping[str, str | None]) -> str:
    name, found = ".".join(map(str, fault["loc"])), " ".join(repr(fault["input"]).split())
    found = found if len(found) <= MAX_INPUT_LENGTH else f"{found[:MAX_INPUT_LENGTH]}..."
    article = "an" if owner[0] in "aeiou" else "a"
    if fault["type"] == "missing":
        return f"the {owner} has no {name}: give one"
    if name.partition(".")[0] not in fields:
        return f"{article} {owner} has no {name[:MAX_INPUT_LENGTH] or found}{_suggest_field(name, fields)}"
    _, should, rest = fault["msg"].partition(" should ")  # pydantic says "Input should", "Tuple should" and so on
    reason = f"should {rest}" if should else fault["msg"].removeprefix("Value error, ")
    description = fields[name.partition(".")[0]]
    meaning = f" ({description})" if description else ""
    return f"the {owner}'s {name} is {found}: it {reason}{meaning}"


def _suggest_field(name: str, fields: Mapping[str, str | None]) -> str:
    meant = OTHER_PROGRAMS_WORDS.get(name.lower())
    if meant in fields:
        return f": velatura calls it {meant}"
    similar = get_close_matches(name.lower(), fields, n=MAX_SUGGESTIONS, cutoff=0.5)
    if similar:
        return f": did you mean {' or '.join(similar)}?"
    return f": it has {', '.join(list(fields)[:MAX_SUGGESTIONS])}, ..."
