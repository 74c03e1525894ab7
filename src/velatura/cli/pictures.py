"""The verbs about pictures: generate, grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

import velatura
from velatura.cli.asking import all_asked, asked, axis_of, source_of, styled
from velatura.cli.base import Opening, base_of, base_option
from velatura.cli.overlays import opened_by_file
from velatura.cli.recipe_options import HOW, IMAGE, PAINT, recipe_options
from velatura.cli.saving import Kept, paths_for, picture_bar, save_each, tell
from velatura.errors import BadRecipe

WITH, KEPT = "What it is painted with", "What is kept"

Given = Mapping[str, object]
Prompt = Annotated[
    str | None, typer.Argument(help="What to paint; <hypernet:name:0.6> lays an overlay on.", show_default=False)
]
Count = Annotated[int, typer.Option(min=1, help="Pictures, each with the next seed.", rich_help_panel=PAINT)]
Lines = Annotated[
    Path | None,
    typer.Option(
        help="A file of prompts, one a line, with --n --w --h --s --d --l and any field behind them.",
        rich_help_panel=PAINT,
        show_default="none",
    ),
]
Styles = Annotated[
    list[str] | None,
    typer.Option("--style", help="A style of styles.csv by name.", rich_help_panel=PAINT, show_default="none"),
]
StyleFile = Annotated[
    Path, typer.Option("--styles", help="The webui's table of styles.", rich_help_panel=PAINT, show_default=True)
]
From = Annotated[
    Path | None, typer.Option("--recipe", help="A picture, made again.", rich_help_panel=HOW, show_default="none")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of the recipe: seed=8.", rich_help_panel=HOW, show_default="none"),
]
Begins = Annotated[
    Path | None, typer.Option("--image", help="Paint over this image.", rich_help_panel=IMAGE, show_default="none")
]
Mask = Annotated[
    Path | None,
    typer.Option("--mask", help="Paint only where this is white.", rich_help_panel=IMAGE, show_default="none"),
]
Inverted = Annotated[bool, typer.Option("--mask-inverted", help="Paint where it is black.", rich_help_panel=IMAGE)]
BaseName = Annotated[str | None, base_option(WITH, default="tiny, or the recipe's")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="The base's precision: float32, float16, bfloat16.", rich_help_panel=WITH)
]
Device = Annotated[str, typer.Option("--device", help="Where it computes: cuda, mps, cpu.", rich_help_panel=WITH)]
Vae = Annotated[
    Path | None,
    typer.Option("--vae", help="Another autoencoder: a file, or its name.", rich_help_panel=WITH, show_default="none"),
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep on the device only what computes.", rich_help_panel=WITH)
]
Averaged = Annotated[
    Literal["last", "ema"],
    typer.Option("--weights", help="Of a checkpoint: last, or their average, ema.", rich_help_panel=WITH),
]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--library", help="Where tags find overlays.", rich_help_panel=WITH, show_default="this folder"),
]
Overlays = Annotated[
    list[str] | None,
    typer.Option("--overlay", help="FILE:STRENGTH, as if tagged.", rich_help_panel=WITH, show_default="none"),
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Warn of tags that name nothing, and go on.", rich_help_panel=WITH)
]
Out = Annotated[Path, typer.Option(help="A folder, or a file: .png, .jpg, .webp.", rich_help_panel=KEPT)]
GridOut = Annotated[
    Path, typer.Option("--out", help="A file: .png, .jpg, .webp; a page goes beside it.", rich_help_panel=KEPT)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.", rich_help_panel=KEPT)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell what each overlay does, in their order.", rich_help_panel=KEPT)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=KEPT)]
Across = Annotated[
    str | None,
    typer.Option("--x", help="NAME=VALUES over the columns: s=0,0.5,1 or seed=7-9.", rich_help_panel=PAINT),
]
Down = Annotated[str | None, typer.Option("--y", help="NAME=VALUES beside the rows.", rich_help_panel=PAINT)]
Deep = Annotated[str | None, typer.Option("--z", help="NAME=VALUES, a sheet for each.", rich_help_panel=PAINT)]
AsMatrix = Annotated[
    bool, typer.Option("--matrix", help="All combinations of what stands behind bars.", rich_help_panel=PAINT)
]


@recipe_options
def generate(
    prompt: Prompt = None,
    *,
    given: Given,
    count: Count = 1,
    prompts: Lines = None,
    style: Styles = None,
    styles: StyleFile = Path("styles.csv"),
    image: Begins = None,
    mask: Mask = None,
    mask_inverted: Inverted = False,
    recipe: From = None,
    changes: Set = None,
    base: BaseName = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    vae: Vae = None,
    offload: Offload = False,
    weights: Averaged = "last",
    library: Folders = None,
    overlay: Overlays = None,
    lenient: Lenient = False,
    out: Out = Path("pictures"),
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Make pictures from a prompt, or from the recipe inside a picture.

    velatura generate "a lighthouse at dusk" --seed 7

    velatura generate --recipe lighthouse.png --set seed=8 --out again.png

    velatura generate "a lighthouse in snow" --image lighthouse.png --denoising 0.6
    """
    from velatura.sampling.generate import generate_each

    overlays, tags = opened_by_file(overlay or ())
    first = asked(recipe, prompt, given, changes or (), needs_prompt=prompts is None)
    wanted = all_asked(styled(first, style or (), styles), prompts, count, tags)
    paths = paths_for(out, len(wanted), overwrite=overwrite)
    source = source_of(image, mask, inverted=mask_inverted)
    shelf = velatura.Library(*(library or [Path()]))
    on = base_of(first, base, shelf, Opening(dtype, device, vae, offload, weights))
    with picture_bar() as on_step:
        pictures = generate_each(
            on, wanted, library=shelf, overlays=overlays, source=source, lenient=lenient, on_step=on_step
        )
        kept = save_each(pictures, paths)
    tell(kept, as_json=as_json, with_effects=verbose)


@recipe_options
def grid(
    prompt: Prompt = None,
    *,
    x: Across = None,
    y: Down = None,
    z: Deep = None,
    matrix: AsMatrix = False,
    given: Given,
    image: Begins = None,
    mask: Mask = None,
    mask_inverted: Inverted = False,
    recipe: From = None,
    changes: Set = None,
    base: BaseName = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    vae: Vae = None,
    offload: Offload = False,
    weights: Averaged = "last",
    library: Folders = None,
    overlay: Overlays = None,
    lenient: Lenient = False,
    out: GridOut = Path("grid.png"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Lay pictures side by side, changing up to three things: a field of the recipe, or a word in braces.

    velatura grid "a lighthouse <hypernet:inca:{s}>" --x s=0,0.5,1 --y seed=7-9

    velatura grid "a lighthouse" --x "sampler=Euler a,DDIM" --y steps=5,10,20 --out samplers.png

    velatura grid "a lighthouse|at night|in snow" --matrix
    """
    from velatura.compare.grid_page import save_page

    if matrix == bool(x or y or z):
        raise BadRecipe("a grid needs something to change: give --x seed=7-9, say, or --matrix alone")
    overlays, tags = opened_by_file(overlay or ())
    across, down, deep = (axis_of(axis, tags) if axis else None for axis in (x, y, z))
    paints_axis = any(axis and axis[0] == "prompt" for axis in (across, down, deep))
    wanted = asked(recipe, prompt, given, changes or (), needs_prompt=not paints_axis)
    [first] = all_asked(wanted, None, 1, tags)
    [path] = paths_for(out if out.suffix else out / "grid.png", 1, overwrite=overwrite)
    [page] = paths_for(path.with_suffix(".html"), 1, overwrite=overwrite, endings=(".html",))
    source = source_of(image, mask, inverted=mask_inverted)
    shelf = velatura.Library(*(library or [Path()]))
    on = base_of(first, base, shelf, Opening(dtype, device, vae, offload, weights))
    with picture_bar() as on_step:
        made = velatura.grid(
            *(on, first),
            x=across,
            y=down,
            z=deep,
            matrix=matrix,
            library=shelf,
            overlays=overlays,
            source=source,
            lenient=lenient,
            on_step=on_step,
        )
    save_page(made, page)  # first: it takes a grid of any size, which a .jpg or .webp may not
    tell([Kept(made.save(path), made.recipe)], as_json=as_json)
