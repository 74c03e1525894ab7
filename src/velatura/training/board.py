"""Losses for TensorBoard, where it is installed and asked for; the log says the same."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from velatura.errors import BadPlan


class Board:
    """The folder tensorboard/ of a run, or nothing at all."""

    def __init__(self, writer: Any = None) -> None:  # SummaryWriter, whose types need the package
        self._writer = writer

    @classmethod
    def of(cls, run: Path, done: int, *, wanted: bool) -> Board:
        """Open it after as many steps; what was drawn beyond them before is hidden."""
        if not wanted:
            return cls()
        refuse_missing()
        module: Any = import_module("torch.utils.tensorboard")
        return cls(module.SummaryWriter(str(run / "tensorboard"), purge_step=done + 1))

    def draw(self, step: int, **values: float) -> None:
        """Add values of a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def refuse_missing() -> None:
    """Refuse to draw where TensorBoard is not installed."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError:
        raise BadPlan(
            "the plan asks for TensorBoard, which is not installed: pip install tensorboard, or plan tensorboard=false"
        ) from None
