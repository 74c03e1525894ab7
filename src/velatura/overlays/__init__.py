"""Overlays: hypernetworks, LoRAs, embeddings, aesthetic gradients and full differences, attached to a frozen base.

KINDS has one row for each kind. Open overlay.py first (the base class), then attach.py (attaching and detaching).
"""

from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.difference import Difference
from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay

KINDS: dict[str, type[Overlay]] = {
    overlay_class.kind: overlay_class for overlay_class in (Hypernetwork, Lora, Embedding, Aesthetic, Difference)
}
