"""Files from which A1111's web UI can continue a training: the .pt, the optimizer's state and a table of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch.optim import Optimizer

from velatura.errors import BadPlan
from velatura.formats.embeddings.write_embedding import a1111_checksum
from velatura.formats.hypernetworks.optim import OPTIMIZER_NAMES, write_optim
from velatura.formats.save import save
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.training.run.log import atomic_write

LOSS_TABLE_NAME = "hypernetwork_loss.csv"


def check_a1111_optimizer(optimizer: Optimizer, patience: int = 0) -> None:
    """Refuse an optimizer with which the web UI cannot continue, and a result without the optimizer's state.

    Args:
        optimizer: The plan's optimizer.
        patience: The plan's patience, with which the result is the best snapshot.

    Raises:
        BadPlan: The optimizer is not one of torch's that the web UI knows, or the plan has patience.
    """
    if patience:
        raise BadPlan(
            "with patience the result is the best snapshot, and the files of a1111 continue from the last step: leave "
            "out a1111 or patience"
        )
    name = type(optimizer).__name__
    if name not in OPTIMIZER_NAMES or not type(optimizer).__module__.startswith("torch."):
        raise BadPlan(
            f"A1111's web UI does not know the optimizer {name}: choose adamw or adafactor, or leave out a1111"
        )


def write_a1111(path: Path, overlay: Overlay, optimizer: Optimizer) -> None:
    """Write the overlay to a .pt file, and its optimizer's state to a .pt.optim file that names the former's hash."""
    with atomic_write(path) as temp_path:
        save(overlay, temp_path)
    digest = a1111_checksum(overlay.vectors[0]) if isinstance(overlay, Embedding) else None
    write_optim(path, type(optimizer).__name__, cast("dict[str, object]", optimizer.state_dict()), digest)


def write_loss_table(
    folder: Path, records: Sequence[Mapping[str, object]], start_step: int, steps_per_epoch: int
) -> None:
    """Write the losses as the web UI does, one row per step.

    Args:
        folder: Folder of the run.
        records: "step", "loss" and "rate" of every step.
        start_step: Number of steps that the overlay had before the run.
        steps_per_epoch: Steps in which every picture is seen once.
    """
    rows = ["step,epoch,epoch_step,loss,learn_rate"]
    for record in records:
        total_step = start_step + cast("int", record["step"])
        epoch, epoch_step = divmod(total_step - 1, steps_per_epoch)
        rows.append(f"{total_step},{epoch},{epoch_step},{record['loss']:.7f},{record['rate']}")
    with atomic_write(folder / LOSS_TABLE_NAME) as temp_path:
        temp_path.write_text("\n".join(rows) + "\n", "utf-8")
