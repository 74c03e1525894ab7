"""Run `velatura upscale`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velatura.cli.base import is_path
from velatura.cli.saving import output_paths
from velatura.cli.screen import progress_bar, say
from velatura.errors import BadArgument, BadFile, warn

if TYPE_CHECKING:
    from PIL.Image import Image

    import velatura

MAX_SIDE_PIXELS = 32_768  # of a result: 3 GiB of pixels in a square of that size


def upscale(
    image: Annotated[Path, typer.Argument(help="The picture to enlarge: .png, .jpg or .webp.", show_default=False)],
    *,
    upscaler: Annotated[
        str | None,
        typer.Option(
            help="A file of ESRGAN or Real-ESRGAN, or its name in --library; or Lanczos.", show_default="none"
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(min=1, max=16, help="How many times as wide and high.", show_default="the network's own, 4"),
    ] = None,
    restore_faces: Annotated[bool, typer.Option("--restore-faces", help="Restore faces in it.")] = False,
    face_restorer: Annotated[
        str | None,
        typer.Option(
            help="What restores them: GFPGAN, CodeFormer, a file, or its name in --library.", show_default="the first"
        ),
    ] = None,
    codeformer_weight: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="0 for the best looks, 1 for the closest likeness.", show_default="0.5"),
    ] = None,
    library: Annotated[
        list[Path] | None, typer.Option(help="Where these files are found.", show_default="this folder")
    ] = None,
    device: Annotated[str, typer.Option(help="Where it computes: cuda, mps, cpu.")] = "auto",
    out: Annotated[Path, typer.Option(help="A folder, or a file: .png, .jpg, .webp.")] = Path("pictures"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Enlarge a picture by a network, or restore its faces; a recipe inside it is kept.

    velatura upscale lighthouse.png --upscaler 4x-UltraSharp --library models/ --out large.png

    velatura upscale lighthouse.png --upscaler models/ESRGAN/4x-UltraSharp.pth --scale 2

    velatura upscale portrait.png --restore-faces --library models/
    """
    _check_work(upscaler, scale, restores_faces=restore_faces)
    if not restore_faces:
        _refuse_face_options(face_restorer, codeformer_weight)
    [path] = output_paths(out, 1, overwrite=overwrite)
    import velatura
    from velatura.sampling.recipe.metadata import read_image_infotext, save_with_infotext

    model_library = velatura.Library(*(library or [Path()]))
    source = _open_picture(image)
    infotext = read_image_infotext(image) or ""
    result = source
    if restore_faces:
        result = _restore_faces(result, face_restorer, codeformer_weight, model_library, device)
    if upscaler is not None:
        result = _enlarge(result, upscaler, scale, model_library, device)
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        result = result.convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_with_infotext(result, path, infotext)
    say(path)


def _check_work(upscaler: str | None, scale: float | None, *, restores_faces: bool) -> None:
    """Refuse options that ask for nothing, or that nothing uses."""
    if upscaler is None and not restores_faces:
        raise BadArgument("nothing is to be done: give --upscaler NAME, --restore-faces, or both")
    if upscaler is None and scale is not None:
        raise BadArgument("--scale needs an upscaler: give --upscaler NAME, such as Lanczos")


def _refuse_face_options(face_restorer: str | None, codeformer_weight: float | None) -> None:
    """Refuse options of restoring faces where they are not restored."""
    for option, value in (("--face-restorer", face_restorer), ("--codeformer-weight", codeformer_weight)):
        if value is not None:
            raise BadArgument(f"{option} {value} changes nothing without --restore-faces: give that too")


def _restore_faces(
    source: "Image", name: str | None, weight: float | None, library: "velatura.Library", device: str
) -> "Image":
    from velatura.base.devices import find_device
    from velatura.face_restoration import DEFAULT_FIDELITY
    from velatura.face_restoration.read_files import CODEFORMER
    from velatura.library import file_entry
    from velatura.sampling.resolve.faces import FaceFiles, find_face_detector, find_face_files, restore_picture_faces

    if name is not None and is_path(name):
        files = FaceFiles(Path(name).stem, file_entry(name), find_face_detector(library))
    else:
        files = find_face_files(name, library)
    models = files.open(find_device(device))
    if weight is not None and models.restorer.model != CODEFORMER:
        warn(f"--codeformer-weight {weight} changes nothing with {models.name}: CodeFormer alone has it")
    weight = DEFAULT_FIDELITY if weight is None else weight
    with progress_bar("restoring faces") as on_face:
        [result] = restore_picture_faces(models, [source], weight=weight, device=find_device(device), on_face=on_face)
    return result


def _enlarge(source: "Image", upscaler: str, scale: float | None, library: "velatura.Library", device: str) -> "Image":
    from velatura.base.devices import find_device
    from velatura.sampling.hires import PIXEL_UPSCALERS, find_upscaler, find_upscaler_file, is_built_in
    from velatura.upscaling import open_upscaler, upscale_image

    if is_built_in(upscaler):
        name = find_upscaler(upscaler)
        if name not in PIXEL_UPSCALERS:
            raise BadArgument(f"{name} enlarges latents, not pictures: give Lanczos, or a file of ESRGAN")
        return source.resize(_target_size(source.size, scale or 2), PIXEL_UPSCALERS[name])
    network = open_upscaler(upscaler) if is_path(upscaler) else find_upscaler_file(upscaler, library)
    size = _target_size(source.size, scale or network.scale)
    with progress_bar("upscaling") as on_tile:
        return upscale_image(network, source, size, device=find_device(device), on_tile=on_tile)


def _open_picture(path: Path) -> "Image":
    from PIL import ImageOps, UnidentifiedImageError

    from velatura.image_files import load_pixels, open_image

    try:
        with open_image(path) as image:
            load_pixels(image)
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise BadFile(f"{path} cannot be read as a picture ({error}): give a .png, .jpg or .webp") from None


def _target_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the size of the result; raises BadArgument if a side would be too long."""
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    if max(width, height) > MAX_SIDE_PIXELS:
        raise BadArgument(
            f"the result would have {width} x {height} pixels, and {MAX_SIDE_PIXELS:,} on a side is the most: "
            "give a smaller --scale"
        )
    return width, height
