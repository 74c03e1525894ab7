"""What a file is that came from a stranger: by its content, whatever it is called."""

from __future__ import annotations

from pathlib import Path

from velatura.errors import BadFile
from velatura.formats import hns
from velatura.formats.nature import inspect_file

SAFETENSORS_ENDINGS = (".safetensors", ".sft")


def detect_kind(path: Path, name: str) -> str:
    """The kind of a file that will get this name, or "unknown" for weights that nobody here opens.

    Raises BadFile for what holds no weights, and for a pickle that is called safetensors, or the reverse.
    """
    if name.endswith(hns.HNS_SUFFIX):
        hns.read_hns(path)
        return "hypernet"
    info = inspect_file(path)
    if (info.container == "safetensors") != name.endswith(SAFETENSORS_ENDINGS):
        inside = "is safetensors" if info.container == "safetensors" else "is no safetensors but a torch file"
        raise BadFile(f"{name} {inside}, so it is not called what it is: do not trust it")
    return info.card.kind
