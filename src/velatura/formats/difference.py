"""Differences of whole weights in velatura's files, under the tensor names of LyCORIS (".diff", ".diff_b")."""

from __future__ import annotations

from velatura.errors import BadFile, BadOverlay
from velatura.formats import native
from velatura.formats.load_state import check_tensor
from velatura.overlays.difference import Difference
from velatura.tensors import Contents

KOHYA_MODULE_KEY = "ss_network_module"  # metadata of sd-scripts and of the programs that follow it
MAX_TENSORS = 2**14  # an SDXL has about 3,000


def sniff(contents: Contents) -> bool:
    """Return True if the card is a difference's and the file was not written for other programs.

    For other programs a difference is written as a LoRA with kohya's metadata, and is read as a LoRA. A file with a
    damaged card is left for `native` to refuse.
    """
    if KOHYA_MODULE_KEY in contents.metadata or native.CARD_KEY not in contents.metadata:
        return False
    try:
        return native.parse_card(contents).kind == Difference.kind
    except BadFile:
        return False


def read(contents: Contents) -> Difference:
    """Build a difference from the tensors of a file and check the values of all of them.

    Raises:
        BadFile: Too many tensors, a tensor that is not finite floating-point numbers, or a name that no layer has.
    """
    name, count = contents.path.name, len(contents.tensors)
    if count > MAX_TENSORS:
        raise BadFile(f"{name} holds {count} tensors, more than any Stable Diffusion has: do not trust it")
    tensors = {key: check_tensor(name, key[:80], tensor, tensor.shape) for key, tensor in contents.tensors.items()}
    try:
        return Difference.from_tensors(tensors, native.parse_card(contents))
    except BadOverlay as error:
        raise BadFile(f"{name} is not a difference of whole weights: {error}") from None
