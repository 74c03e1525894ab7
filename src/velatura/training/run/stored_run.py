"""State of an interrupted run on disk, and the checks before it is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

import torch

from velatura.base.base import Base
from velatura.card import Card
from velatura.datasets.folder import read_dataset
from velatura.errors import BadFile, BadPlan, WrongBase, choose_number, warn
from velatura.overlays.overlay import Overlay
from velatura.training.data.fingerprint import check_data_unchanged
from velatura.training.distributed import Processes
from velatura.training.guard import LossMonitor
from velatura.training.plan import Plan
from velatura.training.run.folder import RunFolder
from velatura.training.run.recorded_base import RecordedBase
from velatura.training.validation import fingerprint_data


class StoredRun(NamedTuple):
    """Plan, header and overlay of an interrupted run, as the main process reads them for all processes."""

    plan: Plan
    header: dict[str, object]
    data_folder: str
    over_others: bool
    overlay: Overlay

    @classmethod
    def read(
        cls, folder: RunFolder | None, base: Base, processes: Processes, *, data_changed: bool, steps: int | None = None
    ) -> StoredRun:
        """Read a run, and refuse another base, another number of processes, and changed pictures.

        Args:
            folder: The run, opened by the main process, which alone calls this.
            base: The base that is to be trained on.
            processes: The processes that train.
            data_changed: Accept changed pictures.
            steps: Make the run longer, so many steps in all.
        """
        assert folder is not None
        plan, header = folder.plan, folder.header
        _check_same_base(base, header)
        _check_same_prediction(base, plan, header)
        _check_process_count(processes, header)
        data_folder = str(header["folder"])
        if not data_changed:
            fingerprint = fingerprint_data(read_dataset(data_folder), plan)
            check_data_unchanged(data_folder, folder.data_fingerprint, fingerprint)
        if not folder.snapshots:
            raise BadFile(f"{folder.path} has no complete snapshot, so the run cannot be resumed: train anew")
        if steps is not None:
            folder.lengthen(steps)
            plan = folder.plan
        return cls(plan, header, data_folder, bool(header["over_others"]), folder.snapshots[-1].overlay())


class ResumePoint(NamedTuple):
    """State of an interrupted run at its last snapshot, as the main process reads it for all processes."""

    initial_card: Card
    losses: list[float]
    validation_losses: dict[int, float]
    high_noise_losses: dict[int, float]
    monitor: LossMonitor
    seconds: float

    @classmethod
    def read(cls, folder: RunFolder) -> Self:
        """Read the state, and remove what was logged and previewed after the snapshot."""
        card, last = folder.card, folder.snapshots[-1]
        progress = last.progress()
        folder.log.truncate(progress.log_size)
        folder.previews.remove_after(last.step)
        return cls(
            card,
            folder.losses(),
            folder.validation_losses("validation"),
            folder.validation_losses("high_noise"),
            progress.watch,
            folder.seconds(),
        )


def log_header(base: Base, overlay: Overlay, folder: str | os.PathLike[str], picture_count: int) -> dict[str, object]:
    """Return what the log says of a run's beginning, besides its plan."""
    return {
        "velatura": version("velatura"),
        "torch": torch.__version__,
        "base": base.name,
        "base_hash": base.hash,
        "base_from": base.opened_from,
        "base_options": base.open_options.model_dump(mode="json", exclude_defaults=True),
        "base_text_hash": base.text_hash,
        "base_vae_hash": base.vae_hash,
        "base_prediction": base.family.prediction,
        "base_zero_snr": base.schedule.zero_snr,
        "dtype": dtype_name(base),
        "device": str(base.device),
        "overlay": overlay.card.model_dump(),
        "folder": str(Path(folder).expanduser().absolute()),
        "pictures": picture_count,
    }


def _check_same_base(base: Base, header: Mapping[str, object]) -> None:
    """Refuse another base, if hashes of files say so."""
    original = (header["base"], header["base_hash"])
    if (base.hash or original[1]) and base.hash != original[1]:
        raise WrongBase(
            f"the run began on {original[0]} ({original[1] or 'not from a file'}), this is {base.name} "
            f"({base.hash or 'not from a file'}): open that base to resume it"
        )
    hashes = {
        "text encoders": ("base_text_hash", base.text_hash, "--text"),
        "vae": ("base_vae_hash", base.vae_hash, "--vae"),
    }
    for part, (field, found, flag) in hashes.items():
        recorded = header.get(field, found)  # runs of older versions record none
        if recorded != found:
            raise WrongBase(
                f"the run began on {original[0]} with {part} of {recorded or 'its own'}, and {base.name} is opened "
                f"with {found or 'its own'}: give the same ones ({flag})"
            )
    if "base_options" not in header:  # of older versions
        return
    weights = RecordedBase.from_header(header).options.weights
    if weights != base.open_options.weights:
        raise WrongBase(
            f"the run began on the {weights} weights of {base.name}, and it is opened with the "
            f"{base.open_options.weights} ones: open it with weights={weights!r}"
        )


def _check_same_prediction(base: Base, plan: Plan, header: Mapping[str, object]) -> None:
    """Refuse a base that is opened with another prediction or noise schedule than the run began with."""
    zero_snr = base.schedule.zero_snr or plan.zero_terminal_snr
    if header.get("base_prediction", base.family.prediction) != base.family.prediction:
        word = "epsilon" if base.family.prediction == "v_prediction" else "v"
        raise WrongBase(
            f"the run began on a base that predicts {header['base_prediction']}, and {base.name} is opened as "
            f"{base.family.prediction}: open it with prediction={word!r} (--prediction {word})"
        )
    if header.get("base_zero_snr", zero_snr) != zero_snr:
        raise WrongBase(
            f"the run began on {base.name} {'without' if zero_snr else 'with'} a noise schedule to zero SNR: open it "
            f"with zero_snr={not zero_snr} ({'--no-zero-snr' if zero_snr else '--zero-snr'})"
        )


def _check_process_count(processes: Processes, header: Mapping[str, object]) -> None:
    """Refuse more or fewer processes than a run began with, because its batches would differ."""
    original_count = header.get("processes", 1)
    if original_count != processes.count:
        raise BadPlan(
            f"the run began with {original_count} process{'es' * (original_count != 1)}, and now there "
            f"{choose_number(processes.count, 'is', 'are')} {processes.count}: "
            f"resume it with --processes {original_count}"
        )


def warn_if_machine_differs(base: Base, header: Mapping[str, object]) -> None:
    """Warn if a run is resumed with another torch, precision or device."""
    now = {"torch": torch.__version__, "dtype": dtype_name(base), "device": str(base.device)}
    changes = [f"{name} {header[name]}, now {value}" for name, value in now.items() if header[name] != value]
    if changes:
        warn(f"the run began with {'; '.join(changes)}: it is resumed, but the result will differ in the last digits")


def dtype_name(base: Base) -> str:
    """Return the name of a base's precision, as "float32"."""
    return str(base.dtype).removeprefix("torch.")
