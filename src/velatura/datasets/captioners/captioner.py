"""What a captioner is, and how one is opened by name or from a folder."""

from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from velatura.datasets.captioners.onnx_taggers import open_tagger
from velatura.errors import BadDataset, UnknownName

# Repositories on the Hugging Face hub; they are looked for in its cache and never downloaded
HUB_REPOSITORIES = {"blip": "Salesforce/blip-image-captioning-base", "wd14": "SmilingWolf/wd-v1-4-vit-tagger-v2"}
CAPTIONER_NAMES = ("tiny", "blip", "wd14", "deepbooru")


class Captioner(Protocol):
    """Model that describes pictures."""

    def caption(self, image: Image.Image) -> str:
        """Return the caption of an RGB picture, or an empty string."""
        ...


def open_captioner(name: str, threshold: float | None = None) -> Captioner:
    """Open a captioner.

    Args:
        name: "tiny", the name of a model in the Hugging Face cache ("blip", "wd14"), or a folder with an ONNX tagger or
            a transformers model.
        threshold: Least probability of a tag, for taggers only; by default the tagger's usual one.

    Raises:
        UnknownName: There is neither such a name nor such a folder.
        BadDataset: The model is not in the cache, its folder has no captioner, or a package is missing.
        BadFile: The model's files are damaged.
    """
    if name == "tiny":
        from velatura.datasets.captioners.tiny_captioner import TinyCaptioner

        return TinyCaptioner()
    folder = _captioner_folder(name)
    if any(folder.glob("*.onnx")):
        return open_tagger(folder, threshold)
    if not (folder / "config.json").is_file():
        raise BadDataset(
            f"{folder} has neither an .onnx tagger nor the config.json of a transformers model: name the folder of one"
        )
    from velatura.datasets.captioners.image_to_text import TransformersCaptioner

    return TransformersCaptioner(folder)


def _captioner_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name not in HUB_REPOSITORIES:
        if name in CAPTIONER_NAMES:
            raise BadDataset(f"{name} is not on the hub: name the folder of its .onnx file and its tags.txt")
        raise UnknownName.with_suggestions("captioner or folder", name, CAPTIONER_NAMES)
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub: Any = huggingface_hub
    try:
        return Path(hub.snapshot_download(HUB_REPOSITORIES[name], local_files_only=True))
    except LocalEntryNotFoundError:
        advice = f"run hf download {HUB_REPOSITORIES[name]}, or name the folder where it is"
        raise BadDataset(f"{name} is not in the Hugging Face cache: {advice}") from None
