"""Run `velatura train embedding`."""

from typing import Annotated

import velatura
from velatura.cli.train.options import OVERLAY_PANEL, Folder, TrainOptions, option, train_options
from velatura.cli.train.session import TrainSession
from velatura.cli.train.start import Start, open_start

Vectors = Annotated[
    int, option("Vectors that the name stands for: tokens of room that it takes in a prompt.", OVERLAY_PANEL)
]
Initial = Annotated[str, option('Words whose meaning it begins with, "robot"; "" begins with none.', OVERLAY_PANEL)]


@train_options
def train_embedding(
    folder: Folder, *, options: TrainOptions, vectors: Vectors = 4, initial: Initial = "*", start: Start = None
) -> None:
    """Train an embedding (textual inversion): a new word for the base's own ability, in a file of a few kilobytes.

    velatura train embedding photos/ --name my-style --steps 200 --out runs/my-style

    velatura train embedding robot/ --name my-robot --for subject --initial "a toy robot" --vectors 8 --dry-run
    """
    session = TrainSession.prepare("embedding", folder, options)
    if start is None:
        overlay = velatura.Embedding.for_base(
            session.base, name=session.name, vectors=vectors, initial=initial, seed=session.plan.seed
        )
    else:
        structure = {"vectors": vectors, "initial": initial}
        overlay = open_start(start, velatura.Embedding, session.name, structure, {"vectors": 4, "initial": "*"})
    session.run(overlay)
