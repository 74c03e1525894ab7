"""What trials of a study share, opened without a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import velatura
from velatura.compare.picture_features import PictureEncoder
from velatura.compare.picture_sets import read_picture_set
from velatura.studies.pictures import split_pictures
from velatura.studies.trials import TrialSetup


def open_setup(base: velatura.Base, pictures: Path, folder: Path, **options: Any) -> TrialSetup:
    """Split pictures of a subject, and return what trials with them share.

    Args:
        base: The base.
        pictures: The pictures.
        folder: The folder of the trials.
        options: Further fields of the setup.
    """
    split = split_pictures(pictures, folder)
    held_out = read_picture_set(split.held_out).images
    encoder = PictureEncoder.open(base)
    return TrialSetup(
        base,
        folder,
        split.data,
        held_out,
        split.held_out,
        split.captions,
        split.name,
        "subject",
        encoder,
        "tiny",
        **options,
    )
