"""What can go wrong, as one tree: every message says what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self


class VelaturaError(Exception):
    """Anything a person can put right: shown as one line, never as a traceback."""


class VelaturaWarning(UserWarning):
    """Something odd that was let through."""


class BadFile(VelaturaError):
    """A file that is damaged, hostile, or of a kind nobody here reads."""


class WrongBase(VelaturaError):
    """An overlay made for bases of other widths."""


class UnsupportedBase(VelaturaError):
    """A base of a kind that is not opened here, or whose layers leave no room for an overlay."""


class BadOverlay(VelaturaError):
    """An overlay whose structure cannot be built."""


class BadStrength(VelaturaError):
    """A strength that is no finite number, or fits no batch."""


class NoEffect(VelaturaError):
    """Something asked for that would change nothing."""


class BadPrompt(VelaturaError):
    """A prompt that cannot be read; the message points at the place."""


class BadRecipe(VelaturaError):
    """A recipe with a field out of bounds, or a picture that carries none."""


class NanLatents(VelaturaError):
    """Latents that are no numbers any more, so that there is nothing to see."""


class BadPlan(VelaturaError):
    """A training plan with a field out of bounds."""


class BadDataset(VelaturaError):
    """A folder that is missing, holds no pictures, or holds a broken or captionless one."""


class TrainingDiverged(VelaturaError):
    """A training whose loss is no number any more."""


class ProcessFailed(VelaturaError):
    """One of several processes that train together broke off, or is gone."""


class AlreadyExists(VelaturaError):
    """A place to write to that already holds something."""


class DownloadFailed(VelaturaError):
    """A file that cannot be had from where it is offered, or did not arrive as it was promised."""


class UnknownName(VelaturaError):
    """A name that is in no list: a sampler, an overlay, a base."""

    @classmethod
    def with_suggestions(cls, kind: str, name: str, known: Iterable[str], where: str = "") -> Self:
        """Build the error that names the nearest of the known names, and where they were looked for."""
        names = sorted(known, key=str.lower)
        missing = f"no {kind} is called {name!r}" + (f" in {where}" if where else "")
        if not names:
            return cls(f"{missing}, and none is known {'there' if where else 'at all'}: add one first")
        by_lower = {candidate.lower(): candidate for candidate in names}
        suggestions = [by_lower[candidate] for candidate in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
        if suggestions:
            return cls(f"{missing}: did you mean {' or '.join(repr(candidate) for candidate in suggestions)}?")
        choices = ", ".join(repr(candidate) for candidate in names[:10]) + (", ..." if len(names) > 10 else "")
        return cls(f"{missing}: choose one of {choices}")
