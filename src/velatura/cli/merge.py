"""Run `velatura merge` and `velatura extract`."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import velatura
from velatura.cli.arguments import open_overlay_argument, split_strengths
from velatura.cli.bake import AsJson, Overwrite
from velatura.cli.base import explain_missing, is_path, open_base, refuse_unknown_base
from velatura.cli.saving import picture_bar, prepare_output, print_report
from velatura.cli.screen import say, say_json
from velatura.errors import BadRecipe, UnknownName, choose_number, quantity

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.card import Card
    from velatura.merging.lora.combine import CombineReport

LORA_KINDS = ("lora", "difference")
LORA_DTYPE: Literal["float16"] = "float16"  # what LoRAs are shared in
MERGE_PANEL, FILE_PANEL, LORA_PANEL = "How models are mixed", "What is written", "LoRAs instead of models"

LibraryFolders = Annotated[
    list[Path] | None, typer.Option(help="Where names are looked for.", show_default="this folder")
]
ModelNames = Annotated[
    list[str],
    typer.Argument(help="One to three models, A B C, or LoRAs with strengths, ink.safetensors:0.8: files or names."),
]
Rank = Annotated[
    int | None,
    typer.Option(min=1, help="The rank of each layer.", show_default="all of all", rich_help_panel=LORA_PANEL),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Or the least rank that misses no more of it, 0.1.", rich_help_panel=LORA_PANEL),
]
LoraBase = Annotated[
    str | None,
    typer.Option("--base", help="The base they are for, which a DoRA's change hangs on.", rich_help_panel=LORA_PANEL),
]


def merge(
    models: ModelNames,
    *,
    out: Annotated[Path, typer.Option(help="The file to write, a .safetensors file.")],
    library: LibraryFolders = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Of B, or of what is added.", show_default="0.3; 1 if added", rich_help_panel=MERGE_PANEL),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="none, weighted-sum, add-difference (A + s(B - C)), sigmoid, inverse-sigmoid, slerp, ties, dare.",
            show_default="by the count of models",
            rich_help_panel=MERGE_PANEL,
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Strengths of blocks: 25 or 26 numbers, or IN=0.2,M00=1,BASE=0.", rich_help_panel=MERGE_PANEL
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="What is kept of differences.", show_default="ties 0.2, dare 0.5", rich_help_panel=MERGE_PANEL
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what dare drops.", rich_help_panel=MERGE_PANEL)] = 0,
    against: Annotated[
        str | None,
        typer.Option(
            help="What A and B were made of, to tell what is left.", show_default="C", rich_help_panel=MERGE_PANEL
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of all weights.", show_default="their own; LoRAs float16", rich_help_panel=FILE_PANEL),
    ] = None,
    vae: Annotated[Path | None, typer.Option(help="An autoencoder to put in.", rich_help_panel=FILE_PANEL)] = None,
    discard: Annotated[
        str, typer.Option(help="Leave out tensors with this expression in their names.", rich_help_panel=FILE_PANEL)
    ] = "",
    config: Annotated[
        Literal["any", "A", "B", "C", "none"], typer.Option(help="Whose .yaml is copied.", rich_help_panel=FILE_PANEL)
    ] = "any",
    metadata: Annotated[
        str, typer.Option(help="Fields of your own as JSON, over those copied.", rich_help_panel=FILE_PANEL)
    ] = "{}",
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Copy no fields of the models.", rich_help_panel=FILE_PANEL)
    ] = False,
    no_recipe: Annotated[
        bool, typer.Option("--no-recipe", help="Do not tell of what it was made.", rich_help_panel=FILE_PANEL)
    ] = False,
    rank: Rank = None,
    tolerance: Tolerance = None,
    base: LoraBase = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge models into one file and report what is left of each; or combine several LoRAs into one.

    velatura merge sd15 anime --strength 0.35 --out mixed.safetensors

    velatura merge mine anime sd15 --mode add-difference --dtype float16 --out mine-anime.safetensors

    velatura merge ink.safetensors:0.8 inca.safetensors:0.5 --rank 32 --out both.safetensors
    """
    prepare_output(out, overwrite=overwrite)
    model_library = velatura.Library(*(library or [Path()]))
    for model in models:
        _refuse_unknown_model(model, model_library)
    for name in filter(None, (against, base)):
        refuse_unknown_base(name, model_library)
    from velatura.merging.checkpoints.merge import merge as merge_models
    from velatura.merging.checkpoints.metadata import parse_fields
    from velatura.merging.checkpoints.options import Saving

    if _are_loras(models, model_library):
        message = (
            "LoRAs take only --rank, --tolerance, --base and --dtype, and their strengths behind their names, ink:0.8"
        )
        _refuse_options(message, strength, mode, blocks, share, seed or None, against, vae, discard or None)
        _refuse_options(
            message, *(value or None for value in (config != "any", metadata != "{}", no_metadata, no_recipe))
        )
        card, report = _combine(
            models, out, model_library, rank=rank, tolerance=tolerance, base=base, dtype=dtype or LORA_DTYPE
        )
        say_json(card.model_dump_json(indent=2)) if as_json else say(f"{out}: {card}", *str(report).splitlines()[1:])
        return
    _refuse_options(
        "--rank, --tolerance and --base are for LoRAs: use velatura extract on models", rank, tolerance, base
    )
    if not 1 <= len(models) <= 3:
        raise BadRecipe(
            f"{quantity(len(models), 'model')} {choose_number(len(models), 'is', 'are')} given: merge two, or add "
            "the difference of two to one"
        )
    metadata_options = {
        "metadata": parse_fields(metadata),
        "copies_metadata": not no_metadata,
        "keeps_recipe": not no_recipe,
    }
    saving = Saving.model_validate(
        {"dtype": dtype, "vae": vae, "discard": discard, "config": config, **metadata_options}
    )
    model_a, model_b, model_c = [*(_find_model(model, model_library) for model in models), None, None][:3]
    assert model_a is not None
    with picture_bar("merging") as on_tensor:
        _, report = merge_models(
            *(model_a, model_b, strength),
            minus=model_c,
            mode=mode,
            blocks=blocks,
            share=share,
            seed=seed,
            against=None if against is None else _find_model(against, model_library),
            saving=saving,
            out=out,
            on_tensor=on_tensor,
        )
    print_report(report, out, as_json=as_json)


def extract(
    base: Annotated[str, typer.Argument(help="The model that the LoRA is for: tiny, a file, a folder, or its name.")],
    other: Annotated[str, typer.Argument(help="The model that is to come of both.")],
    *,
    out: Annotated[Path, typer.Option(help="The LoRA to write, a .safetensors file.")],
    library: LibraryFolders = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The rank of each layer.", show_default="32, or none if --tolerance")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="The least rank of each layer that misses no more of its change, 0.3.")
    ] = None,
    conv_rank: Annotated[
        int | None,
        typer.Option(min=0, help="The same of convolutions larger than 1x1; 0: none.", show_default="as --rank"),
    ] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave the text towers out.")] = False,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="The file's precision.")
    ] = LORA_DTYPE,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write what one model has otherwise than another as a LoRA, and tell how near that comes.

    velatura extract sd15 anime --rank 32 --out anime-lora.safetensors

    velatura extract sd15 anime --tolerance 0.5 --conv-rank 0 --no-text --out anime-lora.safetensors
    """
    prepare_output(out, overwrite=overwrite)
    model_library = velatura.Library(*(library or [Path()]))
    for name in (base, other):
        refuse_unknown_base(name, model_library)
    from velatura.merging.lora.extract import extract as extract_lora

    base_model, other_model = _find_model(base, model_library), _find_model(other, model_library)
    with picture_bar("extracting") as on_weight:
        lora, report = extract_lora(
            *(base_model, other_model, rank),
            tolerance=tolerance,
            conv_rank=conv_rank,
            text=not no_text,
            name=out.stem,
            on_weight=on_weight,
        )
    velatura.save(lora, out, dtype=dtype)
    print_report(report, out, as_json=as_json)


def _refuse_options(message: str, *options: object) -> None:
    if any(value is not None for value in options):
        raise typer.BadParameter(message)


def _combine(
    names: Sequence[str],
    out: Path,
    model_library: "velatura.Library",
    *,
    rank: int | None,
    tolerance: float | None,
    base: str | None,
    dtype: str,
) -> "tuple[Card, CombineReport]":
    """Write LoRAs as one, and return its card and the report."""
    from velatura.merging.lora.combine import combine

    opened_loras = [open_overlay_argument(argument, model_library) for argument in names]
    opened_base = None if base is None else open_base(base, model_library)
    combined, report = combine(opened_loras, rank=rank, tolerance=tolerance, base=opened_base, name=out.stem)
    velatura.save(combined, out, dtype=dtype)
    return combined.card, report


def _refuse_unknown_model(name: str, model_library: "velatura.Library") -> None:
    """Refuse an argument that names neither a model nor a LoRA, before torch is imported."""
    candidates = dict.fromkeys((name, split_strengths(name)[0]))
    if any(candidate == "tiny" or is_path(candidate) for candidate in candidates):
        return
    errors: list[UnknownName] = []
    for candidate in candidates:
        try:
            model_library.entry(candidate, label="model or LoRA")
        except UnknownName as error:
            errors.append(error)
        else:
            return
    raise explain_missing(name, errors[-1])


def _find_model(name: str, model_library: "velatura.Library") -> "Base | Path":
    """Return the path of a model, or the open base for tiny and for a model on the hub."""
    if name == "tiny" or name.startswith("hub:"):
        return open_base(name)
    if is_path(name):
        return Path(name).expanduser()
    try:
        return model_library.entry(name, "checkpoint").path
    except UnknownName as error:
        raise explain_missing(name, error) from None


def _are_loras(names: Sequence[str], model_library: "velatura.Library") -> bool:
    """Return True if the arguments name LoRAs, with or without strengths, and False if they name models."""
    from velatura.overlays import KINDS

    kinds = {argument: _kind(argument, model_library) for argument in names}
    loras = [argument for argument, kind in kinds.items() if kind in LORA_KINDS]
    for argument, kind in kinds.items():
        if kind in KINDS and kind not in LORA_KINDS:
            raise BadRecipe(
                f"{argument} is of kind {kind}: merge models, or LoRAs; one prompt may call several of any kind"
            )
        if loras and kind not in LORA_KINDS:
            found = f"{loras[0]} is a LoRA and {argument} is not"
            raise BadRecipe(f"{found}: LoRAs merge with LoRAs; to put one into a model, use velatura bake")
        if not loras and split_strengths(argument)[1]:
            raise BadRecipe(f"{argument}: models take no strengths behind their names; that of B is --strength")
    return bool(loras)


def _kind(name: str, model_library: "velatura.Library") -> str:
    """Return the kind of a file or of a name in a library, or "" if it is not known."""
    from velatura.formats.inspect.inspect import inspect_file

    if name == "tiny" or name.startswith("hub:"):
        return "checkpoint"
    for candidate in (name, split_strengths(name)[0]):
        if Path(candidate).is_file():
            return inspect_file(candidate).card.kind
        with suppress(UnknownName):
            return model_library.entry(candidate).kind
    return ""
