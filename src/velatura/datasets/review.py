"""The captions of a folder in hand: changed one by one or many at once, saved as they change, and taken back."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from velatura.datasets.caption import write_caption
from velatura.datasets.captions import Caption, NameRules, caption_in_name, read_lists, text_of
from velatura.datasets.folder import all_folders
from velatura.datasets.pictures import picture_paths
from velatura.errors import BadDataset

MOST_UNDO = 1000


@dataclass(frozen=True)
class Step:
    """One change: the captions of pictures before and after; None where none was written."""

    before: Mapping[int, str | None]
    after: Mapping[int, str | None]


@dataclass
class Album:
    """Pictures by number, and the caption that is written for each.

    named: those whose caption is their name or a list's, which the first change of theirs writes into a text.
    """

    folder: Path
    paths: list[Path] = field(default_factory=list[Path])
    _written: dict[int, str | None] = field(default_factory=dict[int, str | None])
    _shown: dict[int, str] = field(default_factory=dict[int, str])
    _done: list[Step] = field(default_factory=list[Step])
    _undone: list[Step] = field(default_factory=list[Step])

    @classmethod
    def of(cls, folder: str | Path) -> "Album":
        """Read the captions of a folder; a picture without one has an empty caption here."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise BadDataset(f"{folder} is no folder; name a folder of pictures")
        album = cls(folder)
        for inner, _ in all_folders(folder):
            listed = read_lists(inner)
            for path in picture_paths(inner):
                number = len(album.paths)
                album.paths.append(path)
                album._written[number] = text_of(path) or None
                album._shown[number] = album._written[number] or _otherwise(path, listed)
        if not album.paths:
            raise BadDataset(f"{folder} holds no pictures; put some in")
        return album

    @property
    def captions(self) -> dict[int, str]:
        """What is shown for each picture."""
        return {number: self._written[number] or self._shown[number] for number in range(len(self.paths))}

    @property
    def undo_count(self) -> int:
        """How many changes can be taken back."""
        return len(self._done)

    @property
    def redo_count(self) -> int:
        """How many changes can be made again."""
        return len(self._undone)

    def set(self, number: int, text: str) -> Collection[int]:
        """Write a picture's caption; returns the pictures whose captions changed, as all others do."""
        return self._change({number}, lambda _: " ".join(text.split()))

    def add(self, numbers: Collection[int], tag: str, *, first: bool = False) -> Collection[int]:
        """Add a tag where it is missing, at the end or as the first."""

        def added(tags: list[str]) -> list[str]:
            return tags if tag in tags else [tag, *tags] if first else [*tags, tag]

        tag = _one(tag)
        return self._change(numbers, lambda text: joined(added(split(text))))

    def remove(self, numbers: Collection[int], tag: str) -> Collection[int]:
        """Take a tag away where it is."""
        tag = _one(tag)
        return self._change(numbers, lambda text: joined([each for each in split(text) if each != tag]))

    def replace(self, numbers: Collection[int], tag: str, by: str) -> Collection[int]:
        """Put a tag in the place of another, once only."""
        tag, by = _one(tag), _one(by)

        def changed(text: str) -> str:
            return joined(list(dict.fromkeys(by if each == tag else each for each in split(text))))

        return self._change([each for each in numbers if tag in split(self.captions[each])], changed)

    def undo(self) -> Collection[int]:
        """Take back the last change."""
        if not self._done:
            raise BadDataset("there is nothing to undo; change a caption first")
        step = self._done[-1]
        self._write(step.before)
        self._undone.append(self._done.pop())
        return step.before.keys()

    def redo(self) -> Collection[int]:
        """Make the change again that was taken back last."""
        if not self._undone:
            raise BadDataset("there is nothing to redo; undo a change first")
        step = self._undone[-1]
        self._write(step.after)
        self._done.append(self._undone.pop())
        return step.after.keys()

    def _change(self, numbers: Collection[int], changed: Callable[[str], str]) -> Collection[int]:
        now = self.captions
        unknown = [number for number in numbers if number not in now]
        if unknown:
            raise BadDataset(f"there is no picture {unknown[0]}; load the page again")
        after = {number: text for number in numbers if (text := changed(now[number])) != now[number]}
        for number, text in after.items():
            if not text:
                raise BadDataset(f"{self.paths[number].name} would have no caption left; give it another first")
        if not after:
            return []
        before = {number: self._written[number] for number in after}
        self._write(after)
        self._done[:] = [*self._done, Step(before, after)][-MOST_UNDO:]
        self._undone.clear()
        return after.keys()

    def _write(self, texts: Mapping[int, str | None]) -> None:
        """Write all of them, each at once or not at all, unless another program wrote one of them meanwhile."""
        for number in texts:
            found = text_of(self.paths[number]) or None
            if found != self._written[number]:
                self._written[number] = found
                name = self.paths[number].name
                raise BadDataset(f"the caption of {name} was changed by another program: look at it again")
        for number, text in texts.items():
            if text is None:
                self.paths[number].with_suffix(".txt").unlink(missing_ok=True)
            else:
                write_caption(self.paths[number], text)
            self._written[number] = text


def split(caption: str) -> list[str]:
    """The tags of a caption: what stands between commas."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def joined(tags: Collection[str]) -> str:
    """A caption of tags."""
    return ", ".join(tags)


def _one(tag: str) -> str:
    tags = split(" ".join(tag.split()))
    if len(tags) != 1:
        raise BadDataset(f"{tag!r} is not one tag; write one, without commas")
    return tags[0]


def _otherwise(picture: Path, listed: Mapping[str, Caption]) -> str:
    """What a list or a picture's name says of it."""
    if picture.name in listed:
        return listed[picture.name].text
    try:
        return caption_in_name(picture, NameRules())
    except BadDataset:
        return ""
