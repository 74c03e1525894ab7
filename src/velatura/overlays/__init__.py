"""What is laid over a base: one row here for each kind."""

from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay

KINDS: dict[str, type[Overlay]] = {Hypernetwork.kind: Hypernetwork, Lora.kind: Lora, Embedding.kind: Embedding}
