"""Pictures laid out side by side with labels, as one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL_PIXELS = 192  # pixels that a picture's longer side is brought to at least about, by a whole factor
GAP_PIXELS = 6  # pixels between two pictures, and around all
TEXT_COLOUR, BACKGROUND_COLOUR = (32, 32, 36), (255, 255, 255)


def draw_grid(
    images: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> Image.Image:
    """Lay rows of images out with labels over the columns and beside them, small ones enlarged by a whole factor."""
    factor = max(1, round(CELL_PIXELS / max(max(image.size) for row in images for image in row)))
    width = factor * max(image.width for row in images for image in row)
    height = factor * max(image.height for row in images for image in row)
    font = ImageFont.load_default(max(14, min(28, width // 12)))
    column_labels = [_wrap(label, font, width) for label in columns]
    row_labels = [_wrap(label, font, width) for label in rows]
    left = GAP_PIXELS + (
        int(max(_text_size(text, font)[0] for text in row_labels)) + 2 * GAP_PIXELS if row_labels else 0
    )
    top = GAP_PIXELS + (
        int(max(_text_size(text, font)[1] for text in column_labels)) + 2 * GAP_PIXELS if column_labels else 0
    )

    column_count = max(len(row) for row in images)
    grid = Image.new(
        "RGB",
        (left + column_count * (width + GAP_PIXELS), top + len(images) * (height + GAP_PIXELS)),
        BACKGROUND_COLOUR,
    )
    draw = ImageDraw.Draw(grid)
    for i, text in enumerate(column_labels):
        draw.text(
            (left + i * (width + GAP_PIXELS) + width // 2, top - GAP_PIXELS),
            text,
            TEXT_COLOUR,
            font,
            "md",
            align="center",
        )
    for i, text in enumerate(row_labels):
        draw.text(
            (left - 2 * GAP_PIXELS, top + i * (height + GAP_PIXELS) + height // 2),
            text,
            TEXT_COLOUR,
            font,
            "rm",
            align="right",
        )
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            position = left + j * (width + GAP_PIXELS), top + i * (height + GAP_PIXELS)
            grid.paste(image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), position)
    return grid


def stack_grids(grids: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Sheets one below the other, each under its label."""
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


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text with line breaks between words, so that lines are no wider than this if they can be."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[float, float]:
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return right - left, bottom - top
