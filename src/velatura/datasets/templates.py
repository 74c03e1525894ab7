"""From a caption to the text that is learned: templates with [name] and [filewords], tags shuffled and dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from velatura.errors import BadDataset, UnknownName

NAME, FILEWORDS = "[name]", "[filewords]"
MOST_BYTES = 2**20

_PHOTOS = ("a photo of {}", "{} in a photograph", "a close-up of {}", "{} seen from afar", "a sharp photo of {}")
_STYLES = ("{}, a picture by [name]", "a drawing of {} by [name]", "{} in the style of [name]", "[name] paints {}")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("picture",),
    "captions": (FILEWORDS,),
    "hypernetwork": tuple(each.format(FILEWORDS) for each in _PHOTOS),
    "style": ("a picture by [name]", "a drawing by [name]", "in the style of [name]", "[name] has painted this"),
    "style_filewords": tuple(each.format(FILEWORDS) for each in _STYLES),
    "subject": tuple(each.format(NAME) for each in _PHOTOS),
    "subject_filewords": (f"{NAME}, {FILEWORDS}", f"a photo of {NAME}, {FILEWORDS}", f"{FILEWORDS}, with {NAME}"),
}


@dataclass(frozen=True)
class Wording:
    """How the text to learn is made of a caption, as in the webui.

    lines: templates, one of which is drawn each time. name: what [name] stands for. tag_dropout: the share of tags
    left out. keep_tags: how many of the first tags are neither shuffled nor dropped.
    """

    lines: Sequence[str] = (FILEWORDS,)
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
        varies = any(FILEWORDS in line for line in self.lines) and (self.shuffles_tags or self.tag_dropout > 0)
        return len(self.lines) == 1 and not varies

    def draw(self, caption: str, chance: Random) -> str:
        """One text for the caption; drawn in this order: a template, a number for each tag, the shuffle."""
        line = chance.choice(self.lines)
        return line.replace(FILEWORDS, ",".join(self._tags(caption, chance))).replace(NAME, self.name)

    def _tags(self, caption: str, chance: Random) -> list[str]:
        tags = caption.split(",")
        kept, free = tags[: self.keep_tags], tags[self.keep_tags :]
        if self.tag_dropout:
            free = [tag for tag in free if chance.random() > self.tag_dropout]
        if self.shuffles_tags:
            chance.shuffle(free)
        return kept + free


def template_lines(template: str | Path) -> list[str]:
    """The lines of a template by its name, or of a text file: one template a line, an empty one for an empty line."""
    if isinstance(template, str) and template in TEMPLATES:
        return list(TEMPLATES[template])
    path = Path(template).expanduser()
    if not path.is_file():
        raise UnknownName.among("template", str(template), TEMPLATES)
    if path.stat().st_size > MOST_BYTES:
        raise BadDataset(f"{path} is longer than {MOST_BYTES >> 20} MiB; give a text of one template a line")
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text; save the templates as UTF-8") from None
