"""The base of a run, as the header of its log describes it: where it is, its parts, and their hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from velatura.base.open_options import OpenOptions
from velatura.errors import BadFile
from velatura.tiny import DATA_FOLDER
from velatura.training.distributed import process_count

HUB_PREFIX = "hub:"  # of bases on the Hugging Face hub, see formats/hub.py, which imports more than is needed here


@dataclass(frozen=True)
class RecordedBase:
    """The base of a run.

    Attributes:
        location: Where it was opened from, or its name if nothing is there any more.
        options: The options that it was opened with, paths of its parts among them.
        unet_hash, text_hashes, vae_hash: Hashes of the files of replaced parts; "" or empty if they are unknown.
    """

    location: str
    options: OpenOptions
    unet_hash: str = ""
    text_hashes: tuple[str, ...] = ()
    vae_hash: str = ""

    @classmethod
    def from_header(cls, header: Mapping[str, object]) -> Self:
        """Read the header of a run's log; headers of older versions have no options.

        Raises:
            BadFile: The options of the base are damaged.
        """
        try:
            options = OpenOptions.model_validate(header.get("base_options", {}))
        except ValidationError as error:
            raise BadFile(
                f"the log of the run has base_options that cannot be read ({error.errors()[0]['msg']}): put log.jsonl "
                "back as it was, or train anew"
            ) from None
        texts = str(header.get("base_text_hash") or "")
        return cls(
            base_location(header.get("base_from"), header.get("base"), options),
            options,
            unet_hash=str(header.get("base_hash") or ""),
            text_hashes=tuple(texts.split(", ")) if texts else (),
            vae_hash=str(header.get("base_vae_hash") or ""),
        )

    @classmethod
    def of_run(cls, path: str | os.PathLike[str], *, may_be_finished: bool = False) -> Self:
        """Read the base of a run that can be resumed.

        Args:
            path: The run folder.
            may_be_finished: Take a finished run too.

        Raises:
            BadFile, NoEffect, AlreadyExists: As `RunFolder.reopen`.
        """
        if process_count() > 1:  # only the main process may lock the folder, and checks it when it resumes
            with suppress(OSError, ValueError, LookupError):
                header = json.loads(Path(path, "log.jsonl").expanduser().read_bytes().splitlines()[0])
                return cls.from_header(header)
        from velatura.training.run.folder import RunFolder

        folder = RunFolder.reopen(path, may_be_finished=may_be_finished)
        folder.log.close()
        return cls.from_header(folder.header)


def base_location(opened_from: object, name: object, options: OpenOptions) -> str:
    """Return where a base was opened from, or its name if nothing is there any more.

    Args:
        opened_from: The path or the name on the hub; None for a base that was not opened.
        name: The name of the base, which is that of another UNet's file if its UNet is replaced.
        options: The options that it was opened with.
    """
    location, name = str(opened_from or ""), str(name)
    if location.startswith(HUB_PREFIX):
        return location
    if location and Path(location) == DATA_FOLDER / name:  # opened by its name
        return name
    if location and Path(location).exists():
        return location
    return Path(location).stem if location and options.unet else name
