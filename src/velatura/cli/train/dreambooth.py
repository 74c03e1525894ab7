"""Run `velatura train dreambooth`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import velatura
from velatura.cli.saving import picture_bar
from velatura.cli.screen import say
from velatura.cli.train.options import (
    OUTPUT_PANEL,
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
from velatura.errors import BadPlan, quantity
from velatura.tiny import DATA_FOLDER
from velatura.training.run.verdict import command_line

if TYPE_CHECKING:
    from velatura.training.train import Run

CLASS_PANEL = "Prior preservation"

Text = Annotated[bool, option("Change the text encoders too.", OVERLAY_PANEL, "--text")]
TextRate = Annotated[str | None, option("Learning rate of text encoders.", TRAINING_PANEL, default="preset")]
ClassPrompt = Annotated[
    str | None, option('What the subject is one of: "a robot". The base paints some, which it keeps.', CLASS_PANEL)
]
ClassPictures = Annotated[
    int | None,
    option("How many of them there are to be in the folder reg/ of the pictures.", CLASS_PANEL, default="100"),
]
ClassWeight = Annotated[float | None, option("How much they count beside the others.", CLASS_PANEL, default="preset")]
Checkpointing = Annotated[
    bool | None, option("Compute twice what takes much memory.", TRAINING_PANEL, "--checkpointing", default="preset")
]
OutputForm = Annotated[
    Literal["difference", "checkpoint", "folder"],
    option("What is written beside the run: nothing more, a checkpoint, or a diffusers folder.", OUTPUT_PANEL, "--as"),
]


@train_options
def train_dreambooth(
    folder: Folder,
    *,
    options: TrainOptions,
    text: Text = False,
    text_rate: TextRate = None,
    class_prompt: ClassPrompt = None,
    class_pictures: ClassPictures = None,
    class_weight: ClassWeight = None,
    checkpointing: Checkpointing = None,
    form: OutputForm = "difference",
    start: Start = None,
) -> None:
    """Train the whole UNet (DreamBooth): the closest likeness, in a file as large as the base.

    velatura train dreambooth robot/ --name my-robot --steps 100 --class-prompt "a toy" --class-pictures 16

    velatura train dreambooth robot/ --base sd15/ --text --checkpointing --optimizer adamw8bit --as checkpoint --dry-run
    """
    refuse_options_without("--text", text or start, {"--text-rate": text_rate})
    refuse_options_without("--class-prompt", class_prompt, {"--class-pictures": class_pictures})
    plan_fields = {"text_rate": text_rate, "class_weight": class_weight, "checkpointing": checkpointing}
    from velatura.training.distributed import is_main_process

    if class_prompt is not None and folder.is_relative_to(DATA_FOLDER):
        raise BadPlan(f"class pictures cannot be kept in the bundled set {folder.name}: copy {folder}, and name that")
    if class_prompt is not None and not options.dry_run:
        from velatura.training.kinds.class_images import caption_class_pictures

        caption_class_pictures(folder, class_prompt)
    session = TrainSession.prepare("dreambooth", folder, _default_to_subject(options), **plan_fields)
    if class_prompt is not None:
        _make_class_pictures(session, class_prompt, 100 if class_pictures is None else class_pictures)
    if start is None:
        overlay = velatura.Difference.for_base(session.base, text=text, name=session.name)
    else:
        overlay = open_start(start, velatura.Difference, session.name, {"text": text}, {"text": False})
    run = session.run(overlay)
    if run and form != "difference" and is_main_process():
        _save_checkpoint(session, run, form)


def _default_to_subject(options: TrainOptions) -> TrainOptions:
    """Choose the subject preset unless another purpose is given."""
    return options if options.plan else replace(options, purpose=options.purpose or "subject")


def _make_class_pictures(session: TrainSession, prompt: str, count: int) -> None:
    from velatura.training.kinds.class_images import (
        check_class_prompt,
        count_missing_class_pictures,
        make_class_pictures,
    )

    if count < 1:
        raise BadPlan(f"{count} class pictures keep nothing of the base: ask for 1 or more, or leave out the prompt")
    check_class_prompt(prompt)
    if session.dry_run:
        missing = quantity(count_missing_class_pictures(session.folder, count), "class picture")
        say(f"{'to be made first':21}{missing} of {prompt}")
        return
    with picture_bar() as on_step:
        paths = make_class_pictures(
            session.base, session.folder, prompt, count, seed=session.plan.seed, on_picture=on_step
        )
    if paths:
        say(f"{paths[0].parent}: {quantity(len(paths), 'class picture')} of {prompt}")


def _save_checkpoint(session: TrainSession, run: "Run", form: str) -> None:
    from velatura.overlays.difference import Difference
    from velatura.training.kinds.dreambooth import save_dreambooth

    assert isinstance(run.overlay, Difference)
    target = Path(session.out, f"{run.file.stem}-{form}")
    written = save_dreambooth(form, session.base, run.overlay, target)
    say(f"{written}: {session.base.name} with {run.overlay.card.name} in its weights")
    say(f"try:  {command_line('velatura', 'generate', session.prompt(run.overlay), '--base', written)}")
