"""python -m tools.pictures_of_controls: draw what the fields of a recipe do, for docs/pictures.md, on the tiny base."""

from pathlib import Path

from PIL import Image

import velatura
from velatura.sampling.image_grid import draw_grid
from velatura.sampling.masks import InitImage
from velatura.sampling.samplers import SAMPLERS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WEBP_QUALITY = 85
HOUSE_RECIPE = velatura.Recipe(prompt="a red house on the beach", seed=7, steps=20, sampler="Euler")
MAX_COLUMNS = 7


def main() -> None:
    """Write one strip for each subject."""
    base = velatura.tiny()
    house = velatura.generate(base, HOUSE_RECIPE).image

    def generate_image(init_image: InitImage | None = None, **fields: object) -> Image.Image:
        return velatura.generate(base, HOUSE_RECIPE.replace(**fields), init_image=init_image).image

    samplers = {name: generate_image(sampler=name, steps=25) for name in SAMPLERS}
    save("samplers", samplers)
    shares = (0.0, 0.3, 0.5, 0.7, 1.0)
    img2img = {
        f"denoising {s:g}": generate_image(InitImage(house), prompt="a green boat at night", denoising=s)
        for s in shares
    }
    save("over-an-image", {"the image": house} | img2img)
    mask = Image.new("L", house.size, 0)
    mask.paste(255, (0, 0, 34, 64))
    masked = {
        content: generate_image(
            InitImage(house, mask), prompt="a green tree on the beach", denoising=0.9, masked_content=content
        )
        for content in ("original", "fill", "latent noise", "latent nothing")
    }
    save("masked", {"the image": house, "the mask": mask.convert("RGB")} | masked)
    large = {f"hires, denoising {s:g}": generate_image(hires_scale=1.5, denoising=s) for s in (0.3, 0.5, 0.7)}
    save("second-pass", {"64 pixels": house} | large | {"96 pixels at once": generate_image(width=96, height=96)})
    boat = {"prompt": "a red boat on the beach"}
    until = (0.3, 0.6, 1.0)
    layouts = {
        f"kept until {s:g}": generate_image(**boat, keep_layout=HOUSE_RECIPE.prompt, keep_layout_until=s) for s in until
    }
    save("layout", {"a red house": house, "a red boat": generate_image(**boat)} | layouts)
    mixes = {
        f"strength {s:g}": generate_image(variation_seed=8, variation_strength=s) for s in (0.2, 0.4, 0.6, 0.8, 1.0)
    }
    save("variation", {"seed 7": house} | mixes)


def save(name: str, pictures: dict[str, Image.Image]) -> None:
    """Lay labelled pictures out in rows and write them."""
    labels, images = list(pictures), list(pictures.values())
    rows = [draw_grid([[image]], columns=[label]) for label, image in zip(labels, images, strict=True)]
    width, height = max(row.width for row in rows), max(row.height for row in rows)
    column_count = min(MAX_COLUMNS, len(rows))
    sheet = Image.new("RGB", (column_count * width, -(-len(rows) // column_count) * height), "white")
    for index, row in enumerate(rows):
        sheet.paste(row, (index % column_count * width, index // column_count * height + height - row.height))
    sheet.save(IMAGES / f"{name}.webp", quality=WEBP_QUALITY)


if __name__ == "__main__":
    main()
