"""The captions of a folder in hand: changed one by one or many at once, saved as they change, and taken back."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from velatura.datasets.folder import all_folders
from velatura.datasets.pictures import picture_paths
from velatura.datasets.read_captions import Caption, NameRules, caption_from_name, read_caption_lists, read_caption_text
from velatura.datasets.write_captions import write_caption
from velatura.errors import BadDataset

MAX_UNDO = 1000


@dataclass(frozen=True)
class CaptionChange:
    """One change: the captions of pictures before and after; None where none was written."""

    before: Mapping[int, str | None]
    after: Mapping[int, str | None]


@dataclass
class CaptionEditor:
    """Pictures by number, and the caption that is written for each.

    named: those whose caption is their name or a list's, which the first change of theirs writes into a text.
    """

    folder: Path
    paths: list[Path] = field(default_factory=list[Path])
    _saved_captions: dict[int, str | None] = field(default_factory=dict[int, str | None])
    _fallback_captions: dict[int, str] = field(default_factory=dict[int, str])
    _undo_stack: list[CaptionChange] = field(default_factory=list[CaptionChange])
    _redo_stack: list[CaptionChange] = field(default_factory=list[CaptionChange])

    @classmethod
    def from_folder(cls, folder: str | Path) -> "CaptionEditor":
        """Read the captions of a folder; a picture without one has an empty caption here."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise BadDataset(f"{folder} is no folder; name a folder of pictures")
        editor = cls(folder)
        for subfolder, _ in all_folders(folder):
            list_captions = read_caption_lists(subfolder)
            for path in picture_paths(subfolder):
                number = len(editor.paths)
                editor.paths.append(path)
                editor._saved_captions[number] = read_caption_text(path) or None
                editor._fallback_captions[number] = editor._saved_captions[number] or _fallback_caption(
                    path, list_captions
                )
        if not editor.paths:
            raise BadDataset(f"{folder} holds no pictures; put some in")
        return editor

    @property
    def captions(self) -> dict[int, str]:
        """What is shown for each picture."""
        return {
            number: self._saved_captions[number] or self._fallback_captions[number] for number in range(len(self.paths))
        }

    @property
    def undo_count(self) -> int:
        """How many changes can be taken back."""
        return len(self._undo_stack)

    @property
    def redo_count(self) -> int:
        """How many changes can be made again."""
        return len(self._redo_stack)

    def set(self, number: int, text: str) -> Collection[int]:
        """Write a picture's caption; returns the pictures whose captions changed, as all others do."""
        return self._change({number}, lambda _: " ".join(text.split()))

    def add(self, numbers: Collection[int], tag: str, *, at_start: bool = False) -> Collection[int]:
        """Add a tag where it is missing, at the end or as the first."""

        def insert_tag(tags: list[str]) -> list[str]:
            return tags if tag in tags else [tag, *tags] if at_start else [*tags, tag]

        tag = _single_tag(tag)
        return self._change(numbers, lambda text: join_tags(insert_tag(split_tags(text))))

    def remove(self, numbers: Collection[int], tag: str) -> Collection[int]:
        """Take a tag away where it is."""
        tag = _single_tag(tag)
        return self._change(numbers, lambda text: join_tags([other for other in split_tags(text) if other != tag]))

    def replace(self, numbers: Collection[int], tag: str, replacement: str) -> Collection[int]:
        """Put a tag in the place of another, once only."""
        tag, replacement = _single_tag(tag), _single_tag(replacement)

        def replace_tag(text: str) -> str:
            return join_tags(
                list(dict.fromkeys(replacement if old_tag == tag else old_tag for old_tag in split_tags(text)))
            )

        return self._change([number for number in numbers if tag in split_tags(self.captions[number])], replace_tag)

    def undo(self) -> Collection[int]:
        """Take back the last change."""
        if not self._undo_stack:
            raise BadDataset("there is nothing to undo; change a caption first")
        change = self._undo_stack[-1]
        self._write(change.before)
        self._redo_stack.append(self._undo_stack.pop())
        return change.before.keys()

    def redo(self) -> Collection[int]:
        """Make the change again that was taken back last."""
        if not self._redo_stack:
            raise BadDataset("there is nothing to redo; undo a change first")
        change = self._redo_stack[-1]
        self._write(change.after)
        self._undo_stack.append(self._redo_stack.pop())
        return change.after.keys()

    def _change(self, numbers: Collection[int], edit: Callable[[str], str]) -> Collection[int]:
        current = self.captions
        unknown = [number for number in numbers if number not in current]
        if unknown:
            raise BadDataset(f"there is no picture {unknown[0]}; load the page again")
        after = {number: text for number in numbers if (text := edit(current[number])) != current[number]}
        for number, text in after.items():
            if not text:
                raise BadDataset(f"{self.paths[number].name} would have no caption left; give it another first")
        if not after:
            return []
        before = {number: self._saved_captions[number] for number in after}
        self._write(after)
        self._undo_stack[:] = [*self._undo_stack, CaptionChange(before, after)][-MAX_UNDO:]
        self._redo_stack.clear()
        return after.keys()

    def _write(self, texts: Mapping[int, str | None]) -> None:
        """Write all of them, each at once or not at all, unless another program wrote one of them meanwhile."""
        for number in texts:
            found = read_caption_text(self.paths[number]) or None
            if found != self._saved_captions[number]:
                self._saved_captions[number] = found
                name = self.paths[number].name
                raise BadDataset(f"the caption of {name} was changed by another program: look at it again")
        for number, text in texts.items():
            if text is None:
                self.paths[number].with_suffix(".txt").unlink(missing_ok=True)
            else:
                write_caption(self.paths[number], text)
            self._saved_captions[number] = text


def split_tags(caption: str) -> list[str]:
    """The tags of a caption: what stands between commas."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def join_tags(tags: Collection[str]) -> str:
    """A caption of tags."""
    return ", ".join(tags)


def _single_tag(tag: str) -> str:
    tags = split_tags(" ".join(tag.split()))
    if len(tags) != 1:
        raise BadDataset(f"{tag!r} is not one tag; write one, without commas")
    return tags[0]


def _fallback_caption(picture: Path, list_captions: Mapping[str, Caption]) -> str:
    """What a list or a picture's name says of it."""
    if picture.name in list_captions:
        return list_captions[picture.name].text
    try:
        return caption_from_name(picture, NameRules())
    except BadDataset:
        return ""
