"""Look for flaws in the captions of a folder together: words in nearly all, doubles, and contradictions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from velatura.datasets.templates import split_tags
from velatura.tiny_world import STOP_WORDS, WORD_PATTERN, words_of

MIN_CAPTIONS = 4  # fewer captions have words in common by chance
MAX_WORD_SHARE = 0.8  # of the captions; what more of them have in common is learned together with the name
MAX_WORDS_SHOWN = 8
MAX_SHOWN_CAPTION = 60  # characters
# Words and tags that cannot be true of one picture: at most one of a group
OPPOSITES = (
    ("day", "night"),
    ("daytime", "nighttime"),
    ("sunrise", "sunset"),
    ("indoors", "outdoors"),
    ("indoor", "outdoor"),
    ("from above", "from below"),
    ("from behind", "from front"),
    ("close-up", "wide shot"),
    ("closeup", "wide shot"),
    ("full body", "upper body", "portrait"),
    ("simple background", "detailed background"),
    ("open mouth", "closed mouth"),
    ("long hair", "short hair"),
    ("solo", "2girls", "2boys", "3girls", "multiple girls", "multiple boys"),
    ("no humans", "1girl"),
    ("no humans", "1boy"),
)
# "day and night", "from day to night": both may be meant
JOINED = "and|or|to|into|nor|than|versus|vs|not"


class CaptionFlaw(NamedTuple):
    """A flaw.

    Attributes:
        kind: A word for programs: "frequent", "doubled", "doubled tag", "empty" or "contradiction".
        file: The picture whose caption has it, or None for the whole folder.
        text: What is wrong, and what it means for the training.
    """

    kind: str
    file: Path | None
    text: str


def lint_captions(captions: Mapping[Path, str], names: Iterable[str] = ()) -> Iterator[CaptionFlaw]:
    """Yield the flaws of the captions of a folder.

    Args:
        captions: The captions, by the paths of their pictures.
        names: What the overlay is called, and other words that may stand in all captions.
    """
    yield from _frequent_words(list(captions.values()), words_of(" ".join(names)))
    yield from _doubled_captions(captions)
    for path, caption in captions.items():
        yield from _flaws_of_one(path, caption)


def find_contradictions(captions: Mapping[Path, str], alike: Iterable[Sequence[Path]]) -> Iterator[CaptionFlaw]:
    """Yield a flaw for every picture that looks like another one and has a caption of other words.

    Args:
        captions: The captions, by the paths of their pictures.
        alike: Pairs of pictures that look the same, the earlier one first.
    """
    for earlier, later in alike:
        first, second = captions.get(earlier), captions.get(later)
        if first and second and words_of(first) - STOP_WORDS != words_of(second) - STOP_WORDS:
            yield CaptionFlaw(
                "contradiction",
                later,
                f"it looks like {earlier.name}, and their captions differ ({_short(second)} and {_short(first)}): "
                "keep one of both, or correct the captions",
            )


def _frequent_words(captions: Sequence[str], named: set[str]) -> Iterator[CaptionFlaw]:
    """Yield one flaw for all words that nearly all captions have, and that are not the name's."""
    if len(captions) < MIN_CAPTIONS:
        return
    counts = Counter(word for caption in captions for word in words_of(caption) - STOP_WORDS - named)
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    frequent = [(word, count) for word, count in most_first if count >= MAX_WORD_SHARE * len(captions)]
    if frequent:
        shown = ", ".join(f"{word!r} ({count} of {len(captions)})" for word, count in frequent[:MAX_WORDS_SHOWN])
        yield CaptionFlaw(
            "frequent",
            None,
            f"nearly all captions have the words {shown}: what the pictures share binds to them instead of the name; "
            "leave them out, or give the name that prompts will use with --name",
        )


def _doubled_captions(captions: Mapping[Path, str]) -> Iterator[CaptionFlaw]:
    paths: dict[str, list[Path]] = defaultdict(list)
    for path, caption in captions.items():
        paths[" ".join(caption.casefold().split())].append(path)
    for caption, same in paths.items():
        if len(same) == len(captions) and len(same) > 1:
            text = f"all captions are {_short(caption)}: say what differs between the pictures, so that prompts can too"
            yield CaptionFlaw("doubled", None, text)
        elif len(same) > 1:
            for path in same[1:]:
                text = f"its caption is that of {same[0].name}, {_short(caption)}: say what differs between them"
                yield CaptionFlaw("doubled", path, text)


def _flaws_of_one(path: Path, caption: str) -> Iterator[CaptionFlaw]:
    if not WORD_PATTERN.search(caption):
        yield CaptionFlaw("empty", path, f"its caption has no words, {_short(caption)}: write what the picture shows")
    tags = [tag.strip().casefold() for tag in split_tags(caption)]
    doubled = [tag for tag, count in Counter(filter(None, tags)).items() if count > 1]
    if doubled:
        yield CaptionFlaw("doubled tag", path, f"its caption has {_short(doubled[0])} twice: write it once")
    opposites = _find_opposites(caption.casefold())
    if opposites:
        first, second = opposites
        text = f"its caption says both {first!r} and {second!r}, which one picture hardly shows: keep what is true"
        yield CaptionFlaw("contradiction", path, text)


def _find_opposites(caption: str) -> tuple[str, str] | None:
    for group in OPPOSITES:
        found = [word for word in group if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", caption)]
        if len(found) > 1 and not _are_joined(caption, found[0], found[1]):
            return found[0], found[1]
    return None


def _are_joined(caption: str, first: str, second: str) -> bool:
    """Return True for "day and night", which one picture may show."""
    return any(
        re.search(rf"{re.escape(left)}\s+(?:{JOINED})\s+(?:a\s+|the\s+)?{re.escape(right)}", caption) is not None
        for left, right in ((first, second), (second, first))
    )


def _short(caption: str) -> str:
    one_line = " ".join(caption.split())
    return repr(one_line if len(one_line) <= MAX_SHOWN_CAPTION else f"{one_line[:MAX_SHOWN_CAPTION]}...")
