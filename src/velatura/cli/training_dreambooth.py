"""The verb `train dreambooth`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import velatura
from velatura.cli.idle import refuse_idle
from velatura.cli.saving import picture_bar
from velatura.cli.screen import say
from velatura.cli.training_options import HOW, KEPT, WHAT, Asked, Folder, asking, option
from velatura.cli.training_run import Session, command_line
from velatura.errors import BadPlan

if TYPE_CHECKING:
    from velatura.training.train import Run

CLASS = "What the base is to keep"

Text = Annotated[bool, option("Change the text encoders too.", WHAT, "--text")]
TextRate = Annotated[str | None, option("Learning rate of text encoders.", HOW, shown="preset")]
ClassPrompt = Annotated[
    str | None, option('What the subject is one of: "a robot". The base paints some, which it keeps.', CLASS)
]
ClassPictures = Annotated[
    int | None, option("How many of them there are to be in the folder reg/ of the pictures.", CLASS, shown="100")
]
ClassWeight = Annotated[float | None, option("How much they count beside the others.", CLASS, shown="preset")]
Checkpointing = Annotated[
    bool | None, option("Compute twice what takes much memory.", HOW, "--checkpointing", shown="preset")
]
Form = Annotated[
    Literal["difference", "checkpoint", "folder"],
    option("What is written beside the run: nothing more, a checkpoint, or a diffusers folder.", KEPT, "--as"),
]


@asking
def train_dreambooth(
    folder: Folder,
    *,
    asked: Asked,
    text: Text = False,
    text_rate: TextRate = None,
    class_prompt: ClassPrompt = None,
    class_pictures: ClassPictures = None,
    class_weight: ClassWeight = None,
    checkpointing: Checkpointing = None,
    form: Form = "difference",
) -> None:
    """Train the whole UNet (DreamBooth): the closest likeness, in a file as large as the base.

    velatura train dreambooth robot/ --name my-robot --steps 100 --class-prompt "a toy" --class-pictures 16

    velatura train dreambooth robot/ --base sd15/ --text --checkpointing --optimizer adamw8bit --as checkpoint --dry-run
    """
    refuse_idle("--text", text, {"--text-rate": text_rate})
    refuse_idle("--class-prompt", class_prompt, {"--class-pictures": class_pictures})
    wanted = {"text_rate": text_rate, "class_weight": class_weight, "checkpointing": checkpointing}
    from velatura.training.launching import follows

    session = Session.of("dreambooth", folder, _for_subject(asked), **wanted)
    if class_prompt is not None:
        _make_class_pictures(session, class_prompt, 100 if class_pictures is None else class_pictures)
    overlay = velatura.Difference.for_base(session.base, text=text, name=session.name)
    run = session.run(overlay)
    if run and form != "difference" and not follows():
        _save(session, run, form)


def _for_subject(asked: Asked) -> Asked:
    """DreamBooth is for subjects, where nothing else is said."""
    return replace(asked, purpose=asked.purpose or "subject")


def _make_class_pictures(session: Session, prompt: str, count: int) -> None:
    from velatura.training.class_making import lacking_class_pictures, make_class_pictures, refuse_no_class

    if count < 1:
        raise BadPlan(f"{count} class pictures keep nothing of the base: ask for 1 or more, or leave out the prompt")
    refuse_no_class(prompt)
    if session.dry_run:
        say(f"{'to be made first':21}{lacking_class_pictures(session.folder, count)} class pictures of {prompt}")
        return
    with picture_bar() as on_step:
        made = make_class_pictures(
            session.base, session.folder, prompt, count, seed=session.plan.seed, on_picture=on_step
        )
    if made:
        say(f"{made[0].parent}: {len(made)} class pictures of {prompt}")


def _save(session: Session, run: "Run", form: str) -> None:
    from velatura.overlays.difference import Difference
    from velatura.training.dreambooth import save_as

    assert isinstance(run.overlay, Difference)
    beside = Path(session.out, f"{run.file.stem}-{form}")
    written = save_as(form, session.base, run.overlay, beside)
    say(f"{written}: {session.base.name} with {run.overlay.card.name} in its weights")
    say(f"try:  {command_line('velatura', 'generate', session.prompt(run.overlay), '--base', written)}")
