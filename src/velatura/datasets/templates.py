"""From a caption to the text that is learned: templates with [name] and [filewords], tags shuffled and dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from velatura.errors import BadDataset, UnknownName

NAME_PLACEHOLDER, FILEWORDS_PLACEHOLDER = "[name]", "[filewords]"
MAX_TEMPLATE_BYTES = 2**20

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
    """How the text to learn is made of a caption, as in the webui.

    lines: templates, one of which is drawn each time. name: what [name] stands for. tag_dropout: the share of tags
    left out. keep_tags: how many of the first tags are neither shuffled nor dropped.
    """

    lines: Sequence[str] = (FILEWORDS_PLACEHOLDER,)
    name: str = ""
    shuffles_tags: bool = False
    tag_dropout: float = 0.0
    keep_tags: int = 0

    def __post_init__(self) -> None:
        if not self.lines:
            raise BadDataset("a template without a line says nothing; write one text a line, such as [filewords]")
        if not 0 <= self.tag_dropout <= 1:
            raise BadDataset(f"a share of {self.tag_dropout:g} of tags cannot be dropped; choose one from 0 to 1")
        if self.keep_tags < 0:
            raise BadDataset(f"{self.keep_tags} tags cannot be kept in their place; choose a number from 0")

    @property
    def is_fixed(self) -> bool:
        """Whether a caption gives the same text every time."""
        varies = any(FILEWORDS_PLACEHOLDER in line for line in self.lines) and (
            self.shuffles_tags or self.tag_dropout > 0
        )
        return len(self.lines) == 1 and not varies

    def draw(self, caption: str, rng: Random) -> str:
        """One text for the caption; drawn in this order: a template, a number for each tag, the shuffle."""
        line = rng.choice(self.lines)
        return line.replace(FILEWORDS_PLACEHOLDER, ",".join(self._tags(caption, rng))).replace(
            NAME_PLACEHOLDER, self.name
        )

    def _tags(self, caption: str, rng: Random) -> list[str]:
        tags = caption.split(",")
        fixed, free = tags[: self.keep_tags], tags[self.keep_tags :]
        if self.tag_dropout:
            free = [tag for tag in free if rng.random() > self.tag_dropout]
        if self.shuffles_tags:
            rng.shuffle(free)
        return fixed + free


def template_lines(template: str | Path) -> list[str]:
    """The lines of a template by its name, or of a text file: one template a line, an empty one for an empty line."""
    if isinstance(template, str) and template in TEMPLATES:
        return list(TEMPLATES[template])
    path = Path(template).expanduser()
    if not path.is_file():
        raise UnknownName.with_suggestions("template", str(template), TEMPLATES)
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise BadDataset(f"{path} is longer than {MAX_TEMPLATE_BYTES >> 20} MiB; give a text of one template a line")
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text; save the templates as UTF-8") from None
