"""Grids of pictures with labels over the columns and beside the rows."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL_PIXELS = 192  # small pictures are enlarged by a whole factor until their longer side is about this long
GAP_PIXELS = 6  # between two pictures, and around the grid
TEXT_COLOUR, BACKGROUND_COLOUR = (32, 32, 36), (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_grid(
    images: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> Image.Image:
    """Draw rows of images as one image.

    Args:
        images: The images of each row; rows may differ in length. Small images are enlarged by a whole factor.
        columns: Labels over the columns; none are drawn if empty.
        rows: Labels beside the rows; none are drawn if empty.
    """
    factor = max(1, round(CELL_PIXELS / max(max(image.size) for row in images for image in row)))
    width = factor * max(image.width for row in images for image in row)
    height = factor * max(image.height for row in images for image in row)
    font = ImageFont.load_default(max(14, min(28, width // 12)))
    column_labels = [_wrap(label, font, width) for label in columns]
    row_labels = [_wrap(label, font, width) for label in rows]
    left = GAP_PIXELS + _label_margin([_text_size(label, font)[0] for label in row_labels])
    top = GAP_PIXELS + _label_margin([_text_size(label, font)[1] for label in column_labels])
    column_lefts = [left + index * (width + GAP_PIXELS) for index in range(max(len(row) for row in images))]
    row_tops = [top + index * (height + GAP_PIXELS) for index in range(len(images))]

    grid_size = (column_lefts[-1] + width + GAP_PIXELS, row_tops[-1] + height + GAP_PIXELS)
    grid = Image.new("RGB", grid_size, BACKGROUND_COLOUR)
    draw = ImageDraw.Draw(grid)
    for label, column_left in zip(column_labels, column_lefts, strict=False):
        position = (column_left + width // 2, top - GAP_PIXELS)
        draw.text(position, label, TEXT_COLOUR, font, "md", align="center")
    for label, row_top in zip(row_labels, row_tops, strict=False):
        position = (left - 2 * GAP_PIXELS, row_top + height // 2)
        draw.text(position, label, TEXT_COLOUR, font, "rm", align="right")
    for row, row_top in zip(images, row_tops, strict=True):
        for image, column_left in zip(row, column_lefts, strict=False):
            enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
            grid.paste(enlarged, (column_left, row_top))
    return grid


def stack_grids(grids: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Stack grids one below the other, each under its label."""
    font = ImageFont.load_default(22)
    width = max(grid.width for grid in grids)
    texts = [_wrap(label, font, width - 2 * GAP_PIXELS) for label in labels]
    heights = [int(_text_size(text, font)[1]) + 4 * GAP_PIXELS for text in texts]
    image = Image.new("RGB", (width, sum(heights) + sum(grid.height for grid in grids)), BACKGROUND_COLOUR)
    draw, top = ImageDraw.Draw(image), 0
    for grid, text, height in zip(grids, texts, heights, strict=True):
        draw.text((GAP_PIXELS, top + height), text, TEXT_COLOUR, font, "ld")
        image.paste(grid, (0, top + height))
        top += height + grid.height
    return image


def _label_margin(label_sizes: Sequence[float]) -> int:
    """Return the pixels that labels of these sizes take, with a gap on both sides; 0 if there are none."""
    return int(max(label_sizes)) + 2 * GAP_PIXELS if label_sizes else 0


def _wrap(text: str, font: Font, width: int) -> str:
    """Break a text between words so that its lines are not wider than `width` pixels, where that is possible."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _text_size(text: str, font: Font) -> tuple[float, float]:
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return right - left, bottom - top
