"""Losses for TensorBoard, if the plan asks for them; the log has the same numbers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from velatura.errors import BadPlan


class TensorBoard:
    """Event files of a run, opened when the first value is added.

    Args:
        folder: Where they are written; None for a run without TensorBoard, which ignores all values.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None  # SummaryWriter, whose types need the package

    def add_scalars(self, step: int, **values: float) -> None:
        """Add values of a step; the first call hides what an earlier process drew from that step on."""
        if self._folder is None:
            return
        if self._writer is None:
            module: Any = import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered, and close the files."""
        if self._writer is not None:
            self._writer.close()


def check_tensorboard_installed() -> None:
    """Refuse a plan with TensorBoard if it is not installed.

    Raises:
        BadPlan: TensorBoard is not installed.
    """
    try:
        import_module("torch.utils.tensorboard")
    except ImportError:
        raise BadPlan(
            "the plan asks for TensorBoard, which is not installed: pip install tensorboard, or set it to false"
        ) from None
