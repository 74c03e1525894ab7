"""What A1111's web UI wants of a training: the .pt, its optimizer's state beside it, and its table of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch.optim import Optimizer

from velatura import formats
from velatura.errors import BadPlan
from velatura.formats.embeddings.write_embedding import a1111_checksum
from velatura.formats.hypernetworks.optim import OPTIMIZER_NAMES, write_optim
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.training.run.log import atomic_write

LOSS_TABLE_NAME = "hypernetwork_loss.csv"


def check_a1111_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that the web UI cannot go on with."""
    name = type(optimizer).__name__
    if name not in OPTIMIZER_NAMES or not type(optimizer).__module__.startswith("torch."):
        raise BadPlan(f"A1111's web UI knows no optimizer {name}: plan adamw or adafactor, or leave out a1111")


def write_a1111(path: Path, overlay: Overlay, optimizer: Optimizer) -> None:
    """Write the overlay as .pt at a path, and its optimizer's state as .pt.optim, bound to the former."""
    with atomic_write(path) as temp_path:
        formats.save(overlay, temp_path)
    digest = a1111_checksum(overlay.vectors[0]) if isinstance(overlay, Embedding) else None
    write_optim(path, type(optimizer).__name__, cast("dict[str, object]", optimizer.state_dict()), digest)


def write_loss_table(
    folder: Path, records: Sequence[Mapping[str, object]], start_step: int, steps_per_epoch: int
) -> None:
    """Write the losses as the web UI does, one row a step; first is the count of steps that the overlay began with."""
    rows = ["step,epoch,epoch_step,loss,learn_rate"]
    for record in records:
        total_step = start_step + cast("int", record["step"])
        epoch, epoch_step = divmod(total_step - 1, steps_per_epoch)
        rows.append(f"{total_step},{epoch},{epoch_step},{record['loss']:.7f},{record['rate']}")
    with atomic_write(folder / LOSS_TABLE_NAME) as temp_path:
        temp_path.write_text("\n".join(rows) + "\n", "utf-8")
