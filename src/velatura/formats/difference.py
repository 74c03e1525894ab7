"""Differences on disk: their tensors as safetensors, named as LyCORIS names whole differences, beside our card."""

from __future__ import annotations

from pydantic import ValidationError

from velatura.card import Card
from velatura.errors import BadFile, BadOverlay
from velatura.formats import native
from velatura.formats.load_state import check_tensor
from velatura.overlays.difference import Difference
from velatura.tensors import Contents

KOHYA_MODULE_KEY = "ss_network_module"  # what sd-scripts and those who follow them say of a file
MAX_TENSORS = 2**14  # an SDXL has about 3,000


def sniff(contents: Contents) -> bool:
    """Whether the file's card is one of a difference; one that is damaged is native's to refuse.

    A file that was written for other programs, under their names of layers, is read as the LoRA that it is to them.
    """
    if KOHYA_MODULE_KEY in contents.metadata:
        return False
    try:
        return Card.model_validate_json(contents.metadata.get(native.CARD_KEY, "")).kind == Difference.kind
    except ValidationError:
        return False


def read(contents: Contents) -> Difference:
    """Build a difference of the tensors in a file, each checked as it is read."""
    name, count = contents.path.name, len(contents.tensors)
    if count > MAX_TENSORS:
        raise BadFile(f"{name} holds {count} tensors, more than any Stable Diffusion has: do not trust it")
    tensors = {key: check_tensor(name, key[:80], tensor, tensor.shape) for key, tensor in contents.tensors.items()}
    try:
        return Difference.from_tensors(tensors, Card.model_validate_json(contents.metadata[native.CARD_KEY]))
    except BadOverlay as error:
        raise BadFile(f"{name} is no difference of whole weights: {error}") from None
