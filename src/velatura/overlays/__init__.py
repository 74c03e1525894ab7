"""What is laid over a base: one row here for each kind."""

from velatura.overlays.aesthetic import Aesthetic
from velatura.overlays.difference import Difference
from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay

KINDS: dict[str, type[Overlay]] = {
    overlay_class.kind: overlay_class for overlay_class in (Hypernetwork, Lora, Embedding, Aesthetic, Difference)
}
