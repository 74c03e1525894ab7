"""What A1111's web UI wants of a training: the .pt, its optimizer's state beside it, and its table of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch.optim import Optimizer

from velatura import formats
from velatura.errors import BadPlan
from velatura.formats.embeddings import checksum
from velatura.formats.optim import NAMES, write_optim
from velatura.overlays.embedding import Embedding
from velatura.overlays.overlay import Overlay
from velatura.training.disk import whole

TABLE = "hypernetwork_loss.csv"


def refuse_unknown(optimizer: Optimizer) -> None:
    """Refuse an optimizer that the web UI cannot go on with."""
    name = type(optimizer).__name__
    if name not in NAMES or not type(optimizer).__module__.startswith("torch."):
        raise BadPlan(f"A1111's web UI knows no optimizer {name}: plan adamw or adafactor, or leave out a1111")


def write_a1111(path: Path, overlay: Overlay, optimizer: Optimizer) -> None:
    """Write the overlay as .pt at a path, and its optimizer's state as .pt.optim, bound to the former."""
    with whole(path) as beside:
        formats.save(overlay, beside)
    digest = checksum(overlay.vectors[0]) if isinstance(overlay, Embedding) else None
    write_optim(path, type(optimizer).__name__, cast("dict[str, object]", optimizer.state_dict()), digest)


def write_table(folder: Path, steps: Sequence[Mapping[str, object]], first: int, steps_an_epoch: int) -> None:
    """Write the losses as the web UI does, one row a step; first is the count of steps that the overlay began with."""
    rows = ["step,epoch,epoch_step,loss,learn_rate"]
    for record in steps:
        done = first + cast("int", record["step"])
        epoch, step = divmod(done - 1, steps_an_epoch)
        rows.append(f"{done},{epoch},{step},{record['loss']:.7f},{record['rate']}")
    with whole(folder / TABLE) as beside:
        beside.write_text("\n".join(rows) + "\n", "utf-8")
