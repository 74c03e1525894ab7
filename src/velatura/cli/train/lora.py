"""Run `velatura train lora`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import velatura
from velatura.cli.train.options import (
    OVERLAY_PANEL,
    TRAINING_PANEL,
    Folder,
    TrainOptions,
    option,
    refuse_options_without,
    train_options,
)
from velatura.cli.train.session import TrainSession
from velatura.cli.train.start import Start, open_start

if TYPE_CHECKING:
    from velatura.base.base import Base

WORD_PANEL = "A word trained with it (pivotal tuning)"

Rank = Annotated[int, option("How many directions each layer's change has.", OVERLAY_PANEL)]
Alpha = Annotated[float | None, option("Changes are multiplied by alpha / rank.", OVERLAY_PANEL, default="the rank")]
Algorithm = Annotated[str, option("lora, dora, loha, lokr, locon, ia3, oft, boft, glora, full, norm.", OVERLAY_PANEL)]
Targets = Annotated[
    str | None,
    option(
        "Layers that change: context (K and V that read the text), attention (Q, K, V and what follows), transformer "
        "(kohya's choice), linear, conv (all).",
        OVERLAY_PANEL,
        default="transformer; conv on the tiny base",
    ),
]
ConvRank = Annotated[int | None, option("The rank in convolutions larger than 1x1.", OVERLAY_PANEL, default="the rank")]
ConvAlpha = Annotated[
    float | None, option("The alpha in convolutions larger than 1x1.", OVERLAY_PANEL, default="alpha")
]
Factor = Annotated[int, option("Size of a lokr's smaller matrix; -1: the squarest.", OVERLAY_PANEL)]
Text = Annotated[bool, option("Change the text encoders too.", OVERLAY_PANEL, "--text")]
RankStabilised = Annotated[bool, option("Divide alpha by the root of the rank.", OVERLAY_PANEL, "--rank-stabilised")]
Dropout = Annotated[float, option("Share of what changes read that rests.", OVERLAY_PANEL)]
RankDropout = Annotated[float, option("Share of directions that rest.", OVERLAY_PANEL)]
ModuleDropout = Annotated[float, option("Share of layers that rest.", OVERLAY_PANEL)]
TextRate = Annotated[str | None, option("Learning rate of text encoders.", TRAINING_PANEL, default="preset")]
Word = Annotated[
    str | None, option("Learn this word too (pivotal tuning), kept in the LoRA's file.", WORD_PANEL, default="none")
]
Vectors = Annotated[int | None, option("Vectors that the word stands for.", WORD_PANEL, default="4")]
Initial = Annotated[str | None, option("Words whose meaning it begins with.", WORD_PANEL, default="*")]
WordRate = Annotated[str | None, option("Its learning rate.", WORD_PANEL, default="preset")]
DEFAULT_STRUCTURE: Mapping[str, object] = {
    "rank": 16,
    "alpha": None,
    "algorithm": "lora",
    "targets": None,
    "conv_rank": None,
    "conv_alpha": None,
    "factor": -1,
    "text": False,
    "rank_stabilised": False,
    "dropout": 0.0,
    "rank_dropout": 0.0,
    "module_dropout": 0.0,
}


@train_options
def train_lora(
    folder: Folder,
    *,
    options: TrainOptions,
    rank: Rank = 16,
    alpha: Alpha = None,
    algorithm: Algorithm = "lora",
    targets: Targets = None,
    conv_rank: ConvRank = None,
    conv_alpha: ConvAlpha = None,
    factor: Factor = -1,
    text: Text = False,
    rank_stabilised: RankStabilised = False,
    dropout: Dropout = 0.0,
    rank_dropout: RankDropout = 0.0,
    module_dropout: ModuleDropout = 0.0,
    text_rate: TextRate = None,
    word: Word = None,
    vectors: Vectors = None,
    initial: Initial = None,
    word_rate: WordRate = None,
    start: Start = None,
) -> None:
    """Train a LoRA, or one of its kin: small changes of the base's weights, good at subjects and at styles.

    velatura train lora photos/ --name ink --steps 200 --out runs/ink

    velatura train lora robot/ --for subject --base sd15/ --rank 32 --targets conv --text --text-rate 5e-5 --dry-run

    velatura train lora more-photos/ --start ink.safetensors --patience 5 --out runs/ink-2
    """
    refuse_options_without("--text", text or start, {"--text-rate": text_rate})
    refuse_options_without("--word", word, {"--vectors": vectors, "--initial": initial, "--word-rate": word_rate})
    template = None if word is None else f"{options.purpose or 'style'}_filewords"  # so that captions say the word
    session = TrainSession.prepare("lora", folder, options, text_rate=text_rate, word_rate=word_rate, template=template)
    structure: dict[str, Any] = {
        "rank": rank,
        "alpha": alpha,
        "algorithm": algorithm,
        "targets": targets,
        "conv_rank": conv_rank,
        "conv_alpha": conv_alpha,
        "factor": factor,
        "text": text,
        "rank_stabilised": rank_stabilised,
        "dropout": dropout,
        "rank_dropout": rank_dropout,
        "module_dropout": module_dropout,
    }
    if start is None:
        overlay = velatura.Lora.for_base(session.base, **structure, seed=session.plan.seed, name=session.name)
    else:
        overlay = open_start(start, velatura.Lora, session.name, structure, DEFAULT_STRUCTURE)
    if word is not None:
        overlay = _add_word(session.base, overlay, word, vectors=vectors, initial=initial, seed=session.plan.seed)
    session.run(overlay)


def _add_word(
    base: "Base", lora: "velatura.Lora", word: str, *, vectors: int | None, initial: str | None, seed: int
) -> "velatura.Lora":
    from velatura.training.kinds.pivotal import PivotalLora

    vector_count = 4 if vectors is None else vectors
    embedding = velatura.Embedding.for_base(base, name=word, vectors=vector_count, initial=initial or "*", seed=seed)
    return PivotalLora.from_lora(lora, embedding)
