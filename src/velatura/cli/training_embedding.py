"""The verb `train embedding`."""

from typing import Annotated

import velatura
from velatura.cli.training_options import WHAT, Asked, Folder, asking, option
from velatura.cli.training_run import Session

Vectors = Annotated[int, option("Vectors that the name stands for: tokens of room that it takes in a prompt.", WHAT)]
Initial = Annotated[str, option('Words whose meaning it begins with, "robot"; "" begins with none.', WHAT)]


@asking
def train_embedding(folder: Folder, *, asked: Asked, vectors: Vectors = 4, initial: Initial = "*") -> None:
    """Train an embedding (textual inversion): a new word for the base's own ability, in a file of a few kilobytes.

    velatura train embedding photos/ --name my-style --steps 200 --out runs/my-style

    velatura train embedding robot/ --name my-robot --for subject --initial "a toy robot" --vectors 8 --dry-run
    """
    session = Session.of("embedding", folder, asked)
    overlay = velatura.Embedding.for_base(
        session.base, name=session.name, vectors=vectors, initial=initial, seed=asked.seed
    )
    session.run(overlay)
