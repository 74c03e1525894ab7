"""Templates that turn a caption into a training text: [name] and [filewords], shuffled and dropped tags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from velatura.arguments import check_arguments
from velatura.errors import BadDataset, UnknownName

NAME_PLACEHOLDER, FILEWORDS_PLACEHOLDER = "[name]", "[filewords]"
MAX_TEMPLATE_BYTES = 2**20

CaptionLines = Literal["all", "first", "random"]  # of a caption with several lines

_PHOTO_TEMPLATES = (
    "a photo of {}",
    "{} in a photograph",
    "a close-up of {}",
    "{} seen from afar",
    "a sharp photo of {}",
)
_STYLE_TEMPLATES = (
    "{}, a picture by [name]",
    "a drawing of {} by [name]",
    "{} in the style of [name]",
    "[name] paints {}",
)
TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("picture",),
    "captions": (FILEWORDS_PLACEHOLDER,),
    "hypernetwork": tuple(template.format(FILEWORDS_PLACEHOLDER) for template in _PHOTO_TEMPLATES),
    "style": ("a picture by [name]", "a drawing by [name]", "in the style of [name]", "[name] has painted this"),
    "style_filewords": tuple(template.format(FILEWORDS_PLACEHOLDER) for template in _STYLE_TEMPLATES),
    "subject": tuple(template.format(NAME_PLACEHOLDER) for template in _PHOTO_TEMPLATES),
    "subject_filewords": (
        f"{NAME_PLACEHOLDER}, {FILEWORDS_PLACEHOLDER}",
        f"a photo of {NAME_PLACEHOLDER}, {FILEWORDS_PLACEHOLDER}",
        f"{FILEWORDS_PLACEHOLDER}, with {NAME_PLACEHOLDER}",
    ),
}


@dataclass(frozen=True)
class CaptionTemplate:
    """Template that turns a caption into a training text, as in the web UI.

    Attributes:
        lines: Texts with [name] and [filewords], of which one is chosen at random every time.
        name: Replaces [name].
        shuffles_tags: Shuffle the comma-separated tags of the caption.
        tag_dropout: Share of tags to leave out, 0 to 1.
        keep_tags: Number of first tags that are neither shuffled nor left out.
        caption_lines: Of a caption with several lines: "all" is one text of all, "first" the first line, as in kohya's
            scripts, and "random" another line every time.

    Raises:
        BadDataset: The template has no lines, or a number is out of range.
    """

    lines: Sequence[str] = (FILEWORDS_PLACEHOLDER,)
    name: str = ""
    shuffles_tags: bool = False
    tag_dropout: float = 0.0
    keep_tags: int = 0
    caption_lines: CaptionLines = "all"

    def __post_init__(self) -> None:
        if not self.lines:
            raise BadDataset("the template has no lines: write one text per line, such as [filewords]")
        if not 0 <= self.tag_dropout <= 1:
            raise BadDataset(f"tag_dropout is {self.tag_dropout:g}: choose a share from 0 to 1")
        if self.keep_tags < 0:
            raise BadDataset(f"keep_tags is {self.keep_tags}: choose 0 or more")

    @property
    def is_fixed(self) -> bool:
        """Return True if a caption gives the same text every time."""
        uses_caption = any(FILEWORDS_PLACEHOLDER in line for line in self.lines)
        changes_caption = self.shuffles_tags or self.tag_dropout > 0 or self.caption_lines == "random"
        return len(self.lines) == 1 and not (uses_caption and changes_caption)

    def draw(self, caption: str, rng: Random) -> str:
        """Return a text for the caption.

        Args:
            caption: Caption of a picture.
            rng: Draws a line, then a number per tag for the dropout, then the shuffle: the order of the web UI. The
                line of a caption with several lines is drawn after that of the template.
        """
        line = rng.choice(self.lines)
        choices = self.caption_choices(caption)
        caption = choices[0] if len(choices) == 1 else rng.choice(choices)
        filewords = ",".join(self._draw_tags(caption, rng))
        return line.replace(FILEWORDS_PLACEHOLDER, filewords).replace(NAME_PLACEHOLDER, self.name)

    def caption_choices(self, caption: str) -> list[str]:
        """Return the texts that may stand for a caption: lines of it, without empty ones, or the whole."""
        lines = [line.strip() for line in caption.splitlines() if line.strip()]
        if self.caption_lines == "all" or len(lines) < 2:
            return [caption]
        return lines[:1] if self.caption_lines == "first" else lines

    def _draw_tags(self, caption: str, rng: Random) -> list[str]:
        tags = split_tags(caption)
        fixed, free = tags[: self.keep_tags], tags[self.keep_tags :]
        if self.tag_dropout:
            free = [tag for tag in free if rng.random() > self.tag_dropout]
        if self.shuffles_tags:
            rng.shuffle(free)
        return fixed + free


def split_tags(caption: str) -> list[str]:
    """Split a caption at its commas, but not within brackets: "(red hair, blue eyes:1.3)" is one tag.

    Brackets that a backslash stands before, as in names of booru tags, and those without a partner are plain letters.
    """
    inside = [False] * len(caption)
    openings: list[int] = []
    for position, letter in enumerate(caption):
        if caption[position - 1 : position] == "\\":
            continue
        if letter in "([":
            openings.append(position)
        elif letter in ")]" and openings and caption[openings[-1]] + letter in {"()", "[]"}:
            start = openings.pop()
            inside[start:position] = [True] * (position - start)
    commas = [index for index, letter in enumerate(caption) if letter == "," and not inside[index]]
    starts, ends = [0, *(index + 1 for index in commas)], [*commas, len(caption)]
    return [caption[start:end] for start, end in zip(starts, ends, strict=True)]


@check_arguments()
def template_lines(template: str | Path) -> list[str]:
    """Return the lines of a template.

    Args:
        template: Name in `TEMPLATES`, or path of a text file with one text per line, which may be empty.

    Raises:
        UnknownName: There is neither such a template nor such a file.
        BadDataset: The file is too long, or not UTF-8 text.
    """
    if isinstance(template, str) and template in TEMPLATES:
        return list(TEMPLATES[template])
    path = Path(template).expanduser()
    if not path.is_file():
        raise UnknownName.with_suggestions("template", str(template), TEMPLATES)
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise BadDataset(
            f"{path} is longer than {MAX_TEMPLATE_BYTES >> 20} MiB: give a text file with one text per line"
        )
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text: save the templates as UTF-8") from None
