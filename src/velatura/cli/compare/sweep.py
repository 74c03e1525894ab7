"""Run `velatura sweep`: try settings of a training by successive halving, and train the winner to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.cli.base import base_option, open_base, refuse_unknown_base
from velatura.cli.compare.measure import AsJson
from velatura.cli.compare.study import Ray
from velatura.cli.screen import progress_bar, say, say_json
from velatura.cli.train.options import LibraryFolders, bundled_or_given, parse_assignments

BASE_PANEL, BUDGET_PANEL = "Base and pictures", "Budget"

Kind = Annotated[str, typer.Argument(help="Kind of overlay: hypernet, lora, embedding or dreambooth.")]
SweepPictures = Annotated[
    Path,
    typer.Argument(
        help="Pictures, each with its caption in a .txt file beside it; or a bundled set: neon, blueprint, robot.",
        callback=bundled_or_given,
    ),
]
Tries = Annotated[
    list[str],
    typer.Option(
        "--try",
        help="Values to try, as rate=1e-3|3e-3: an option of the kind or a field of the plan. Give it several times "
        "for all combinations.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Steps of a whole training.", rich_help_panel=BUDGET_PANEL, show_default="preset"),
]
Factor = Annotated[
    int,
    typer.Option(
        help="One of so many trials goes on to the next round, which ends after so many times as many steps.",
        min=2,
        rich_help_panel=BUDGET_PANEL,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        help="The most combinations to try, drawn at random.", rich_help_panel=BUDGET_PANEL, show_default="all"
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every training.", min=0)]
Purpose = Annotated[str, typer.Option("--for", help="Which preset: style or subject.")]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", help="A field of the plan for all trials, as ema=0.999.", show_default="none"),
]
Validation = Annotated[
    Path | None,
    typer.Option(
        help="Pictures for the validation, none of them trained on.",
        rich_help_panel=BASE_PANEL,
        show_default="one in four of the pictures",
    ),
]
Out = Annotated[Path, typer.Option(help="The folder of the sweep; an unfinished one goes on.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print trials, steps and minutes, and stop.")]


def sweep(
    kind: Kind,
    folder: SweepPictures,
    *,
    tries: Tries,
    purpose: Purpose = "style",
    fields: Fields = None,
    seed: Seed = 0,
    base: Annotated[str, base_option(BASE_PANEL)] = "tiny",
    library: LibraryFolders = None,
    validation: Validation = None,
    steps: Steps = None,
    factor: Factor = 2,
    trials: Trials = None,
    ray: Ray = None,
    out: Out = Path("sweep"),
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Try settings of a training: all begin, the better half goes on, until one is left, which is trained to the end.

    velatura sweep hypernet photos/ --try "layers=1,2,1|1,2,2,1" --try "rate=1e-3|3e-3" --steps 200 --out sweep/

    velatura sweep lora photos/ --try "rank=4|16" --try "rate=5e-4|2e-3" --base sd15 --library models/ --dry-run
    """
    from velatura.studies.candidates import PRESET_FAMILIES, CandidateOptions, check_before_opening, parse_tries

    # Before torch is loaded and the base is opened, whose family decides about the preset
    families = ("tiny",) if base == "tiny" else PRESET_FAMILIES
    options = CandidateOptions(kind, purpose, families[0], steps, seed, parse_assignments(fields or []), trials)
    values = parse_tries(tries)
    check_before_opening(values, options, factor, families)
    folders = velatura.Library(*(library or [Path()]))
    refuse_unknown_base(base, folders)
    opened_base = open_base(base, folders)
    if dry_run:
        from velatura.studies.sweep_plan import SweepPlan, plan_sweep

        setup = plan_sweep(
            opened_base,
            folder,
            out,
            values,
            options._replace(family=opened_base.family.name),
            factor=factor,
            validation=validation and validation.expanduser(),
        )
        plan = SweepPlan.measure(setup)
        if as_json:
            say_json(plan.model_dump_json(indent=2))
        else:
            say(*str(plan).splitlines())
        return
    with progress_bar("sweep") as update:
        results = velatura.sweep(
            opened_base,
            kind,
            folder,
            tries=values,
            out=out,
            steps=steps,
            factor=factor,
            trials=trials,
            purpose=purpose,
            seed=seed,
            validation=validation,
            fields=options.fields,
            ray=ray,
            on_trial=lambda _, done, total: update(done, total),
        )
    if as_json:
        say_json(results.model_dump_json(indent=2))
        return
    say(*str(results).splitlines())
    say(f"overlay: {out / (results.file or '')}", f"report: {out / 'index.html'}")
