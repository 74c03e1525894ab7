"""Overlays that a library has loaded and keeps for the next call, so many that memory stays bounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from velatura.library.model_files import FileState

if TYPE_CHECKING:
    from velatura.overlays.overlay import Overlay

MAX_LOADED_BYTES = 2**31  # of weights; a server that runs for months meets more overlays than its memory holds


class LoadedOverlays:
    """Overlays by their files; beyond MAX_LOADED_BYTES those that were asked for longest ago are forgotten."""

    def __init__(self) -> None:
        self._overlays: dict[Path, tuple[FileState, Overlay]] = {}  # the one asked for last at the end

    def find(self, path: Path, state: FileState) -> Overlay | None:
        """Return the overlay of a file, None if it is not kept or the file has changed.

        Args:
            path: The file.
            state: Its state now.
        """
        known = self._overlays.pop(path, None)
        if known is None or known[0] != state:
            return None
        self._overlays[path] = known
        return known[1]

    def keep(self, path: Path, state: FileState, overlay: Overlay) -> None:
        """Keep an overlay, and forget others until all fit; the overlay itself is kept whatever its size."""
        byte_counts = {other: _byte_count(kept) for other, (_, kept) in self._overlays.items()}
        used = sum(byte_counts.values()) + _byte_count(overlay)
        for other, count in byte_counts.items():
            if used <= MAX_LOADED_BYTES:
                break
            del self._overlays[other]
            used -= count
        self._overlays[path] = state, overlay


def _byte_count(overlay: Overlay) -> int:
    tensors = (*overlay.parameters(), *overlay.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
