"""Pictures laid out side by side with labels, as one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL = 192  # pixels that a picture's longer side is brought to at least about, by a whole factor
GAP = 6  # pixels between two pictures, and around all
INK, PAPER = (32, 32, 36), (255, 255, 255)


def draw_grid(
    images: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> Image.Image:
    """Lay rows of images out with labels over the columns and beside them, small ones enlarged by a whole factor."""
    factor = max(1, round(CELL / max(max(image.size) for row in images for image in row)))
    width = factor * max(image.width for row in images for image in row)
    height = factor * max(image.height for row in images for image in row)
    font = ImageFont.load_default(max(14, min(28, width // 12)))
    over = [_wrapped(label, font, width) for label in columns]
    beside = [_wrapped(label, font, width) for label in rows]
    left = GAP + (int(max(_size(text, font)[0] for text in beside)) + 2 * GAP if beside else 0)
    top = GAP + (int(max(_size(text, font)[1] for text in over)) + 2 * GAP if over else 0)

    across = max(len(row) for row in images)
    sheet = Image.new("RGB", (left + across * (width + GAP), top + len(images) * (height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate(over):
        pen.text((left + i * (width + GAP) + width // 2, top - GAP), text, INK, font, "md", align="center")
    for i, text in enumerate(beside):
        pen.text((left - 2 * GAP, top + i * (height + GAP) + height // 2), text, INK, font, "rm", align="right")
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            place = left + j * (width + GAP), top + i * (height + GAP)
            sheet.paste(image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), place)
    return sheet


def stacked(sheets: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Sheets one below the other, each under its label."""
    font = ImageFont.load_default(22)
    width = max(sheet.width for sheet in sheets)
    texts = [_wrapped(label, font, width - 2 * GAP) for label in labels]
    heights = [int(_size(text, font)[1]) + 4 * GAP for text in texts]
    whole = Image.new("RGB", (width, sum(heights) + sum(sheet.height for sheet in sheets)), PAPER)
    pen, top = ImageDraw.Draw(whole), 0
    for sheet, text, height in zip(sheets, texts, heights, strict=True):
        pen.text((GAP, top + height), text, INK, font, "ld")
        whole.paste(sheet, (0, top + height))
        top += height + sheet.height
    return whole


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text with line breaks between words, so that lines are no wider than this if they can be."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[float, float]:
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return right - left, bottom - top
