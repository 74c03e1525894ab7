"""Captions written for a folder of pictures by something that looks at them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from velatura.datasets.captioners.onnx_taggers import open_tagger
from velatura.datasets.folder import all_folders
from velatura.datasets.pictures import picture_paths, read_upright
from velatura.datasets.read_captions import CAPTION_SUFFIXES, Caption, read_caption_lists, read_caption_text
from velatura.errors import BadDataset, UnknownName
from velatura.files import atomic_write

# What the names stand for on the Hugging Face hub; they are looked for in its cache, and never downloaded here
HUB_REPOSITORIES = {"blip": "Salesforce/blip-image-captioning-base", "wd14": "SmilingWolf/wd-v1-4-vit-tagger-v2"}
CAPTIONER_NAMES = ("tiny", "blip", "wd14", "deepbooru")

# What becomes of a caption that is there: None leaves the picture out
EXISTING_CAPTION_MODES: dict[str, Callable[[str, str], str | None]] = {
    "keep": lambda _old, _new: None,
    "replace": lambda _old, new: new,
    "prepend": lambda old, new: f"{new}, {old}",
    "append": lambda old, new: f"{old}, {new}",
}


class Captioner(Protocol):
    """Something that says what a picture shows."""

    def caption(self, image: Image.Image) -> str:
        """What an RGB picture shows, in words; empty if it has none."""
        ...


@dataclass(frozen=True)
class WrittenCaption:
    """One caption written: to which file, in whole."""

    file: Path
    text: str


def open_captioner(name: str, threshold: float | None = None) -> Captioner:
    """A captioner by name (tiny, or one in the hub's cache), or from a folder of a tagger or of a transformers model.

    threshold: how likely a tag must be; only for taggers.
    """
    if name == "tiny":
        from velatura.datasets.captioners.tiny_captioner import TinyCaptioner

        return TinyCaptioner()
    folder = _captioner_folder(name)
    if any(folder.glob("*.onnx")):
        return open_tagger(folder, threshold)
    if not (folder / "config.json").is_file():
        raise BadDataset(
            f"{folder} holds neither a .onnx tagger nor the config.json of a transformers model: name the folder of one"
        )
    from velatura.datasets.captioners.image_to_text import TransformersCaptioner

    return TransformersCaptioner(folder)


def caption_folder(
    folder: str | Path, captioner: Captioner, *, existing: str = "keep", prefix: str = ""
) -> Iterator[WrittenCaption]:
    """Write the .txt of each picture as its caption is found, folders that count and regularisation pictures too.

    existing: what becomes of captions that are there, a name of EXISTING; one in a file's name or a list is there as
    long as a text is. before: words put before each new caption. Nothing is written for a picture of which nothing is
    said.
    """
    if existing not in EXISTING_CAPTION_MODES:
        raise UnknownName.with_suggestions("way with captions", existing, EXISTING_CAPTION_MODES)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise BadDataset(f"{folder} is no folder; name a folder of pictures")
    for subfolder, _ in all_folders(folder):
        list_captions = read_caption_lists(subfolder)
        for path in picture_paths(subfolder):
            yield from _caption_picture(path, list_captions, captioner, existing, prefix)


def write_caption(picture: Path, text: str) -> Path:
    """Write a picture's caption to the file that is read for it, at once or not at all."""
    candidates = (picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    file = next((path for path in candidates if path.is_file()), picture.with_suffix(".txt"))
    with atomic_write(file) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    return file


def _caption_picture(
    path: Path, list_captions: dict[str, Caption], captioner: Captioner, existing: str, prefix: str
) -> Iterator[WrittenCaption]:
    old = _existing_caption(path, list_captions)
    if old and EXISTING_CAPTION_MODES[existing](old, "") is None:
        return
    generated = captioner.caption(read_upright(path))
    new = ", ".join(filter(None, (prefix, generated)))
    text = EXISTING_CAPTION_MODES[existing](old, new) if old else new
    if generated and text:
        yield WrittenCaption(write_caption(path, text), text)


def _existing_caption(path: Path, list_captions: dict[str, Caption]) -> str:
    """The caption that a text or a list gives; names are none here."""
    return read_caption_text(path) or (list_captions[path.name].text if path.name in list_captions else "")


def _captioner_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name not in HUB_REPOSITORIES:
        if name in CAPTIONER_NAMES:
            raise BadDataset(f"{name} has no usual place: give the folder of its .onnx file and its tags.txt")
        raise UnknownName.with_suggestions("captioner or folder", name, CAPTIONER_NAMES)
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub: Any = huggingface_hub
    try:
        return Path(hub.snapshot_download(HUB_REPOSITORIES[name], local_files_only=True))
    except LocalEntryNotFoundError:
        advice = f"hf download {HUB_REPOSITORIES[name]}, or give the folder where it is"
        raise BadDataset(f"{name} is not in the hub's cache: {advice}") from None
