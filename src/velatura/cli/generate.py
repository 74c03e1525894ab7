"""Run `velatura generate` and `velatura grid`."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

import velatura
from velatura.base.families import PredictionWord
from velatura.cli.arguments import (
    add_styles,
    build_recipe,
    expand_recipe,
    find_wildcards,
    open_overlay_files,
    parse_axis,
    read_grid_axes,
    read_init_image,
    read_style_table,
    refuse_unknown_names,
    template_texts,
)
from velatura.cli.base import (
    LoadOptions,
    base_option,
    open_base,
    open_recipe_base,
    part_option,
    prediction_option,
    zero_snr_option,
)
from velatura.cli.options import IMG2IMG_PANEL, PROMPT_PANEL, SAMPLING_PANEL, ray_option, recipe_options
from velatura.cli.saving import (
    SavedPicture,
    live_preview,
    output_paths,
    picture_bar,
    picture_printer,
    print_pictures,
    save_pictures,
)
from velatura.cli.screen import print_error
from velatura.errors import BadRecipe

MAX_SEEDS_SHOWN = 4
MODEL_PANEL, OUTPUT_PANEL = "Base and overlays", "Output"

RecipeFields = Mapping[str, object]
Prompt = Annotated[
    str | None, typer.Argument(help="What to paint; <hypernet:name:0.6> attaches an overlay.", show_default=False)
]
Count = Annotated[int, typer.Option(min=1, help="Pictures, each with the next seed.", rich_help_panel=PROMPT_PANEL)]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        help="A file of prompts, one on each line, with options such as --n --w --h --s --d --l after them.",
        rich_help_panel=PROMPT_PANEL,
        show_default="none",
    ),
]
Wildcards = Annotated[
    Path | None,
    typer.Option(
        "--wildcards",
        help="Folder of files of which __name__ draws a line; {a|b} draws one.",
        rich_help_panel=PROMPT_PANEL,
        show_default="wildcards/ at --library",
    ),
]
Styles = Annotated[
    list[str] | None,
    typer.Option("--style", help="A style of styles.csv by name.", rich_help_panel=PROMPT_PANEL, show_default="none"),
]
StyleFile = Annotated[
    Path, typer.Option("--styles", help="The webui's table of styles.", rich_help_panel=PROMPT_PANEL, show_default=True)
]
RecipeImage = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A picture to make again, or a text file with its generation data; - reads a text from standard input.",
        rich_help_panel=SAMPLING_PANEL,
        show_default="none",
    ),
]
RecipeChanges = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of the recipe: seed=8.", rich_help_panel=SAMPLING_PANEL, show_default="none"),
]
InitImagePath = Annotated[
    Path | None,
    typer.Option(
        "--image", "--init-image", help="Paint over this image.", rich_help_panel=IMG2IMG_PANEL, show_default="none"
    ),
]
MaskPath = Annotated[
    Path | None,
    typer.Option("--mask", help="Paint only where this is white.", rich_help_panel=IMG2IMG_PANEL, show_default="none"),
]
MaskInverted = Annotated[
    bool, typer.Option("--mask-inverted", help="Paint where it is black.", rich_help_panel=IMG2IMG_PANEL)
]
BaseName = Annotated[str | None, base_option(MODEL_PANEL, default="tiny, or the recipe's")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="The base's precision: float32, float16, bfloat16.", rich_help_panel=MODEL_PANEL)
]
Device = Annotated[
    str, typer.Option("--device", help="Where it computes: cuda, mps, cpu.", rich_help_panel=MODEL_PANEL)
]
Unet = Annotated[Path | None, part_option("unet", MODEL_PANEL)]
TextEncoders = Annotated[list[Path] | None, part_option("text", MODEL_PANEL)]
Vae = Annotated[Path | None, part_option("vae", MODEL_PANEL)]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep on the device only what computes.", rich_help_panel=MODEL_PANEL)
]
CheckpointWeights = Annotated[
    Literal["last", "ema"],
    typer.Option("--weights", help="Of a checkpoint: last, or their average, ema.", rich_help_panel=MODEL_PANEL),
]
PredictionOption = Annotated[PredictionWord | None, prediction_option(MODEL_PANEL)]
ZeroSnr = Annotated[bool | None, zero_snr_option(MODEL_PANEL)]
LibraryFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--library", help="Where tags find overlays.", rich_help_panel=MODEL_PANEL, show_default="this folder"
    ),
]
OverlayArguments = Annotated[
    list[str] | None,
    typer.Option("--overlay", help="FILE:STRENGTH, as if tagged.", rich_help_panel=MODEL_PANEL, show_default="none"),
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Warn of tags that name nothing, and go on.", rich_help_panel=MODEL_PANEL)
]
Out = Annotated[Path, typer.Option(help="A folder, or a file: .png, .jpg, .webp.", rich_help_panel=OUTPUT_PANEL)]
GridOut = Annotated[
    Path, typer.Option("--out", help="A file: .png, .jpg, .webp; a page goes beside it.", rich_help_panel=OUTPUT_PANEL)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that are there.", rich_help_panel=OUTPUT_PANEL)
]
LivePreview = Annotated[
    bool,
    typer.Option("--preview", help="While painting, show each step in OUT.preview.png.", rich_help_panel=OUTPUT_PANEL),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Print what each overlay does.", rich_help_panel=OUTPUT_PANEL),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=OUTPUT_PANEL)]
XAxis = Annotated[
    str | None,
    typer.Option("--x", help="NAME=VALUES over the columns: s=0,0.5,1 or seed=7-9.", rich_help_panel=PROMPT_PANEL),
]
YAxis = Annotated[str | None, typer.Option("--y", help="NAME=VALUES beside the rows.", rich_help_panel=PROMPT_PANEL)]
ZAxis = Annotated[str | None, typer.Option("--z", help="NAME=VALUES, a sheet for each.", rich_help_panel=PROMPT_PANEL)]
AsMatrix = Annotated[
    bool, typer.Option("--matrix", help="All combinations of what stands behind bars.", rich_help_panel=PROMPT_PANEL)
]


@recipe_options
def generate(
    prompt: Prompt = None,
    *,
    recipe_fields: RecipeFields,
    count: Count = 1,
    prompts: PromptFile = None,
    wildcards: Wildcards = None,
    style: Styles = None,
    styles: StyleFile = Path("styles.csv"),
    image: InitImagePath = None,
    mask: MaskPath = None,
    mask_inverted: MaskInverted = False,
    recipe: RecipeImage = None,
    changes: RecipeChanges = None,
    base: BaseName = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    unet: Unet = None,
    text: TextEncoders = None,
    vae: Vae = None,
    offload: Offload = False,
    weights: CheckpointWeights = "last",
    prediction: PredictionOption = None,
    zero_snr: ZeroSnr = None,
    library: LibraryFolders = None,
    overlay: OverlayArguments = None,
    lenient: Lenient = False,
    out: Out = Path("pictures"),
    overwrite: Overwrite = False,
    preview: LivePreview = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Make pictures from a prompt, or from the recipe inside a picture.

    velatura generate "a lighthouse at dusk" --seed 7

    velatura generate --recipe lighthouse.png --set seed=8 --out again.png

    velatura generate "a lighthouse in snow" --image lighthouse.png --denoising 0.6
    """
    overlays, tags = open_overlay_files(overlay or ())
    first = build_recipe(recipe, prompt, recipe_fields, changes or (), needs_prompt=prompts is None)
    recipes = expand_recipe(add_styles(first, style or (), styles), prompts, count, tags)
    is_seed_drawn = [single_recipe.seed is None for single_recipe in recipes]
    is_replay = recipe is not None and prompt is None and prompts is None
    from velatura.sampling.recipe.expand import draw_missing_seed, draw_templates

    wildcard_folder = find_wildcards(template_texts(recipes), wildcards, library or [Path()], is_replay=is_replay)
    recipes = [draw_templates(recipe, wildcard_folder) for recipe in recipes]
    paths = output_paths(out, len(recipes), overwrite=overwrite)
    model_library = velatura.Library(*(library or [Path()]))
    if not lenient:
        refuse_unknown_names(
            recipes, model_library, overlays, needs_faces=not recipe or "restore_faces" in recipe_fields
        )
    init_image = read_init_image(image, mask, is_inverted=mask_inverted)
    load_options = LoadOptions(dtype, device, vae, offload, weights, prediction, zero_snr, unet, tuple(text or ()))
    opened_base = open_recipe_base(first, base, model_library, load_options)
    from velatura.sampling.generate import generate_stream

    say_picture = None if as_json else picture_printer(with_effects=verbose)
    draws_seeds = any(is_seed_drawn)
    recipes = [draw_missing_seed(recipe) for recipe in recipes]
    drawn_seeds = _describe_drawn_seeds(
        [str(recipe.seed) for recipe, is_drawn in zip(recipes, is_seed_drawn, strict=True) if is_drawn]
    )
    with picture_bar() as on_step, live_preview(paths[0]) if preview else nullcontext() as on_preview:
        pictures = generate_stream(
            opened_base,
            recipes,
            library=model_library,
            overlays=overlays,
            init_image=init_image,
            lenient=lenient,
            on_step=on_step,
            on_preview=on_preview,
        )
        try:
            saved = save_pictures(pictures, paths, say_picture)
        except KeyboardInterrupt as interruption:
            if draws_seeds:
                interruption.add_note(drawn_seeds)
            raise
    if as_json:
        print_pictures(saved, as_json=True)
    elif draws_seeds:
        print_error(drawn_seeds + (", which the pictures record" if sum(is_seed_drawn) > MAX_SEEDS_SHOWN else ""))


def _describe_drawn_seeds(seeds: Sequence[str]) -> str:
    """Name the seeds that were drawn, of many the first."""
    if len(seeds) <= MAX_SEEDS_SHOWN:
        return f"drawn at random: seed {', '.join(seeds)}"
    return f"drawn at random: seed {seeds[0]} and {len(seeds) - 1} more"


@recipe_options
def grid(
    prompt: Prompt = None,
    *,
    x: XAxis = None,
    y: YAxis = None,
    z: ZAxis = None,
    matrix: AsMatrix = False,
    recipe_fields: RecipeFields,
    wildcards: Wildcards = None,
    style: Styles = None,
    styles: StyleFile = Path("styles.csv"),
    image: InitImagePath = None,
    mask: MaskPath = None,
    mask_inverted: MaskInverted = False,
    recipe: RecipeImage = None,
    changes: RecipeChanges = None,
    base: BaseName = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    unet: Unet = None,
    text: TextEncoders = None,
    vae: Vae = None,
    offload: Offload = False,
    weights: CheckpointWeights = "last",
    prediction: PredictionOption = None,
    zero_snr: ZeroSnr = None,
    library: LibraryFolders = None,
    overlay: OverlayArguments = None,
    lenient: Lenient = False,
    ray: Annotated[str | None, ray_option("Make the pictures", OUTPUT_PANEL)] = None,
    out: GridOut = Path("grid.png"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare pictures side by side, changing up to three settings: a field of the recipe, or a word in braces.

    velatura grid "a lighthouse <hypernet:inca:{s}>" --x s=0,0.5,1 --y seed=7-9

    velatura grid "a lighthouse" --x "sampler=Euler a,DDIM" --y steps=5,10,20 --out samplers.png

    velatura grid "a lighthouse" --x base=sd15,anime.safetensors --y style=None,ink

    velatura grid "a lighthouse|at night|in snow" --matrix

    velatura grid --recipe grid.png --set steps=40
    """
    from velatura.compare.base_axis import check_base_values
    from velatura.compare.cells import cell_recipes, is_base_axis

    recipe_grid = read_grid_axes(recipe, (x, y, z), matrix=matrix)
    if recipe_grid is not None:
        x, y, z = recipe_grid.axis_arguments()
        matrix, prompt = recipe_grid.is_matrix, recipe_grid.prompt if prompt is None else prompt
        recipe_fields = {**recipe_grid.negative_field(), **recipe_fields}
    if matrix == bool(x or y or z):
        raise BadRecipe(
            "a grid needs something to change: give an axis, as --x seed=7-9, or --matrix alone, or the picture of a "
            "grid with --recipe"
        )
    overlays, tags = open_overlay_files(overlay or ())
    x_axis, y_axis, z_axis = (parse_axis(axis, tags) if axis else None for axis in (x, y, z))
    axis_names = [axis[0] for axis in (x_axis, y_axis, z_axis) if axis]
    start = build_recipe(recipe, prompt, recipe_fields, changes or (), needs_prompt="prompt" not in axis_names)
    [first] = expand_recipe(add_styles(start, style or (), styles), None, 1, tags)
    has_style_axis = "style" in axis_names and "{style}" not in first.prompt + first.negative
    style_table = read_style_table(styles) if has_style_axis else None
    has_base_axis = any(is_base_axis(name, first) for name in axis_names)
    if has_base_axis and base is not None:
        raise BadRecipe(f"an axis goes through bases, and --base {base} is given too: leave it out, or add it there")
    texts = template_texts([first], filter(None, (x_axis, y_axis, z_axis)))
    is_replay = recipe is not None and prompt is None
    wildcard_folder = find_wildcards(texts, wildcards, library or [Path()], is_replay=is_replay)
    [path] = output_paths(out if out.suffix else out / "grid.png", 1, overwrite=overwrite)
    [page] = output_paths(path.with_suffix(".html"), 1, overwrite=overwrite, endings=(".html",))
    init_image = read_init_image(image, mask, is_inverted=mask_inverted)
    model_library = velatura.Library(*(library or [Path()]))
    cells = cell_recipes(first, (x_axis, y_axis, z_axis), matrix=matrix, styles=style_table)
    if not lenient:
        refuse_unknown_names(cells, model_library, overlays, needs_faces=not recipe or "restore_faces" in recipe_fields)
    for name, values in filter(None, (x_axis, y_axis, z_axis)):
        if is_base_axis(name, first):
            check_base_values(values, model_library)
    load_options = LoadOptions(dtype, device, vae, offload, weights, prediction, zero_snr, unet, tuple(text or ()))
    opened_base = None if has_base_axis else open_recipe_base(first, base, model_library, load_options)
    from velatura.compare.grid_page import save_page

    with picture_bar() as on_step:
        result = velatura.grid(
            opened_base,
            first,
            x=x_axis,
            y=y_axis,
            z=z_axis,
            matrix=matrix,
            library=model_library,
            overlays=overlays,
            source=init_image,
            lenient=lenient,
            styles=style_table,
            wildcards=wildcard_folder,
            open_base=lambda name: open_base(name, model_library, load_options),
            ray=ray,
            on_step=on_step,
        )
    save_page(result, page)  # first: it takes a grid of any size, which a .jpg or .webp may not
    print_pictures([SavedPicture(result.save(path), result.recipe)], as_json=as_json)
