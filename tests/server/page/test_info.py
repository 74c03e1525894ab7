"""Picture info in a browser: a picture of another program is dropped, compared, and used."""

from __future__ import annotations

import base64
import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

# As A1111 writes it, with a base and a LoRA that are not here
INFOTEXT = """a red cat <lora:watercolour:0.7>, (detailed:1.2)
Negative prompt: ugly
Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 5.5, Seed: 9007199254740993, Size: 512x768, Model hash: abcdef12, \
Model: deliberate, Clip skip: 2, Version: v1.6.0"""
DROP = """([data, type]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "dropped", { type }));
  const options = { bubbles: true, cancelable: true, dataTransfer: transfer };
  for (const name of ["dragenter", "dragover", "drop"]) {
    document.querySelector("#panel-info .drop").dispatchEvent(new DragEvent(name, options));
  }
}"""


def picture(text: str | None = INFOTEXT) -> bytes:
    buffer, info = io.BytesIO(), PngInfo()
    if text:
        info.add_text("parameters", text)
    Image.new("RGB", (8, 12), "red").save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_dropped_picture_tells_its_recipe_and_what_is_missing(open_page):
    page = open_page("#info")
    page.locator("#panel-info .drop").wait_for()
    page.evaluate(DROP, [base64.b64encode(picture()).decode(), "image/png"])
    result = page.locator(".info-result")
    result.get_by_role("heading", name="Missing here").wait_for()
    text = result.inner_text()
    assert "The base deliberate (abcdef12) is not in this library." in text
    assert "The LoRA watercolour is not in this library." in text
    rows = [row.inner_text().split("\t") for row in result.locator("tbody tr").all()]
    assert ["Steps", "30 steps", "20 steps"] in rows
    # 2**53 + 1 is the first whole number that a JavaScript number does not hold
    assert ["Seed", "9007199254740993", "new each time"] in rows


def test_a_picture_without_a_recipe_is_refused_in_one_line(open_page):
    page = open_page("#info")
    page.locator("#info-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture(None)})
    line = page.locator("#panel-info .error")
    line.wait_for()
    assert "no recipe" in line.inner_text()
