"""Losses for TensorBoard, where it is installed and asked for; the log says the same."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from velatura.errors import BadPlan


class TensorBoard:
    """The folder tensorboard/ of a run, or nothing at all."""

    def __init__(self, writer: Any = None) -> None:  # SummaryWriter, whose types need the package
        self._writer = writer

    @classmethod
    def create(cls, folder: Path, step: int, *, is_enabled: bool) -> TensorBoard:
        """Open it after as many steps; what was drawn beyond them before is hidden."""
        if not is_enabled:
            return cls()
        check_tensorboard_installed()
        module: Any = import_module("torch.utils.tensorboard")
        return cls(module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1))

    def add_scalars(self, step: int, **values: float) -> None:
        """Add values of a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def check_tensorboard_installed() -> None:
    """Refuse to draw where TensorBoard is not installed."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError:
        raise BadPlan(
            "the plan asks for TensorBoard, which is not installed: pip install tensorboard, or plan tensorboard=false"
        ) from None
