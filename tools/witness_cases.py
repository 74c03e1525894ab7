"""What the witness makes: command lines, as people type them, and a few things done by the public names in Python.

Each case has a name and steps, which write into the folder that they find themselves in.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import velatura

Case = tuple[str | Callable[[], None], ...]  # words behind `velatura`, or what does it in Python

STOCK = "../../stock"  # the overlays, models and pictures that cases begin with, seen from where a case is at work
ALGORITHMS = ("lora", "dora", "loha", "lokr", "locon", "ia3", "oft", "boft", "glora", "full", "norm")

# --- Pictures: the words behind `velatura generate`

SAMPLERS = (
    *("Euler", "Euler a", "Heun", "DPM2", "DPM2 a", "LMS", "LMS Karras", "PLMS", "DDIM", "UniPC", "LCM", "Restart"),
    *("DPM++ 2M", "DPM++ 2M Karras", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE"),
    *("DPM fast", "DPM adaptive"),
)
SCHEDULERS = (
    *("Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple", "Normal"),
    *("DDIM", "Beta"),
)
HOUSE = '"a red house on the beach"'
OVER = f'"a green boat" --image {STOCK}/image.png --denoising 0.6'
MASKED = f"{OVER} --mask {STOCK}/mask.png"
PICTURES = {
    **{f"sampler {each}": f'{HOUSE} --sampler "{each}"' for each in SAMPLERS},
    **{f"scheduler {each}": f'{HOUSE} --sampler Euler --scheduler "{each}"' for each in SCHEDULERS},
    "churn": f"{HOUSE} --sampler Heun --churn 2 --churn-from 0.1 --churn-to 9 --churn-noise 1.01",
    "eta, ensd": f"{HOUSE} --eta 0.6 --ensd 31337 --sigma-min 0.1 --sigma-max 10 --scheduler Karras --rho 5",
    "unipc's own": f"{HOUSE} --sampler UniPC --unipc-variant bh2 --unipc-spacing logSNR --unipc-order 2",
    "odd levels": f"{HOUSE} --sampler Euler --discards-penultimate --sgm-noise --quantised",
    "nv": f"{HOUSE} --noise NV",
    "variation": f"{HOUSE} --variation-seed 8 --variation-strength 0.3 --seed-size 48x64",
    "negative": f'{HOUSE} --negative "blue, (dark:1.2), [night|fog]"',
    "emphasis": '"a (red:1.3) ((house)) on [the] \\(beach\\)"',
    "no norm": '"a (red:1.3) house" --emphasis "No norm"',
    "edit": '"a [cat:dog:0.5] in [red:[green:blue:0.7]:0.3]"',
    "edit by steps": '"a [cat:dog:2] and [::boat:1]" --sampler Heun',
    "old editing": '"a [cat:dog:2]" --sampler Heun --old-editing',
    "alternation": '"a [cat|dog|fish] indoors"',
    "and": '"a cat AND a dog:0.5 AND a (red:1.2) hat:-0.2" --cfg 4',
    "break": f'{HOUSE[:-1]} BREAK at night" --negative "fog BREAK rain"',
    "long": f'"{", ".join(["a red house", "a blue boat", "a green fish"] * 9)}"',
    "clip skip": f"{HOUSE} --clip-skip 2",
    "no guidance": f"{HOUSE} --cfg 1",
    "ngms": f"{HOUSE} --skip-negative-below 6 --negative blue",
    "tiling": f"{HOUSE} --tiling --width 96",
    "batch": f"{HOUSE} --count 3",
    "batch of sde": f'{HOUSE} --count 2 --sampler "DPM++ SDE" --noise NV',
    "prompts": f"{HOUSE} --prompts {STOCK}/prompts.txt --style pale --styles {STOCK}/styles.csv",
    "webp": f"{HOUSE} --out x.webp\nshow x.webp --json",
    "half": f"{HOUSE} --dtype bfloat16",
    "keep layout": f'"a red boat on the beach" --keep-layout {HOUSE} --keep-layout-until 0.6',
    "hires": f"{HOUSE} --hires-scale 1.5 --hires-steps 3 --denoising 0.5",
    "hires of pixels": f"{HOUSE} --hires-size 96x0 --hires-upscaler Lanczos --hires-sampler DDIM --hires-prompt boat",
    "over": OVER,
    "over, cropped": f"{OVER} --width 96 --fit crop --extra-noise 0.1 --noise-multiplier 0.9",
    "over, of latents": f"{OVER} --width 96 --fit latent --sampler DDIM",
    "masked": f"{MASKED} --mask-blur 2",
    "masked, fill": f"{MASKED} --masked-content fill --mask-inverted",
    "masked, noise": f'{MASKED} --masked-content "latent noise" --count 2',
    "masked, nothing": f'{MASKED} --masked-content "latent nothing" --sampler "DPM++ 2M SDE"',
    "masked, padding": f"{MASKED} --mask-padding 8",
    "hypernet": '"a house <hypernet:hyper:0.6>"',
    "overlay": f'"a house" --overlay {STOCK}/hyper.safetensors:0.6 --overlay {STOCK}/lora.safetensors:0.3:0.6',
    "hypernet, linear": '"a house <hypernet:linear:0.8>"',
    "hypernet over steps": '"a house <hypernet:hyper:0@0, 0.8@0.5:on=prompt:blocks=mid+out>" --negative fog',
    "hypernets": '"a house <hypernet:hyper:0.5><hypernet:linear:0.5:start=0.2:end=0.8>"',
    "hypernets, averaged": '"a house <hypernet:hyper:0.6><hypernet:linear:0.6>" --combine average',
    "composition": '"a house <hypernet:mix:0.9>"',
    "lora of two strengths": '"a house <lora:lora:0.3:0.6>"',
    "lora over steps": '"a house <lora:lora:te=0.5:unet=0@0, 1@0.5>"',
    "lora by ranks and blocks": '"a house <lora:lora:0.5:dyn=2:lbw=MIDD>"',
    **{f"lora of {each}": f'"a house <lora:{each}:0.4>"' for each in ALGORITHMS},
    "difference": '"a house <difference:robot:0.7>"',
    "aesthetic": '"a house <aesthetic:dusk:0.9:steps=3:rate=1e-3>"',
    "embedding": '"a house in zorp" --negative "zorp, fog"',
    "embedding by strength": '"a (house in zorp:1.2) <embedding:zorp:0.6>"',
    "all kinds": '"a house in zorp <hypernet:hyper:0.3><lora:dora:0.3><difference:robot:0.3><aesthetic:dusk:0.5>"',
    "velocity": f"{HOUSE} --base {STOCK}/velocity.safetensors --negative blue",
    "other base": f"{HOUSE} --base {STOCK}/other.safetensors --vae {STOCK}/third.safetensors",
}
PAINT = "--seed 7 --steps 5"
SHELF = f" --library {STOCK}"

# --- Trainings: whole command lines, one after the other

PLAN = "--name ink --out run --steps 4 --batch 2 --pixels 32 --snapshot-every 2 --set validation_pictures=2"
PHOTOS = f"{STOCK}/photos {PLAN}"
TRAININGS = {
    "hypernet": f"train hypernet {PHOTOS} --activation mish --dropout 0.2 --layer-norm"
    " --set a1111=true --preview-every 2",
    "hypernet, averaged": f"train hypernet {PHOTOS} --set ema=0.9 --set accumulation=2 --schedule cosine --warmup 1",
    "lora": f"train lora {PHOTOS} --text --rank 4 --dropout 0.1 --rank-dropout 0.1 --module-dropout 0.1",
    "lora, weighed": f"train lora {PHOTOS} --rank 4 --min-snr 5 --set loss=huber --optimizer lion",
    "lora, noises": f"train lora {PHOTOS} --rank 4 --set debiased=true --set loss=smooth_l1 --set pyramid_noise=0.3"
    " --set input_perturbation=0.1 --set latents=draw --set noise_as_velocity=0.5",
    "lokr": f"train lora {PHOTOS} --algorithm lokr --rank 4 --targets conv --optimizer adafactor",
    "dora": f"train lora {PHOTOS} --algorithm dora --rank 4 --alpha 2 --optimizer prodigy --rate 1 --schedule cosine",
    "pivotal": f'train lora {PHOTOS} --rank 4 --word zorp --vectors 2 --initial "red" --word-rate 1e-2',
    "embedding": f'train embedding {PHOTOS} --vectors 2 --initial "red house" --optimizer schedule_free',
    "embedding, words": f"train embedding {PHOTOS} --for subject --shuffle-tags --tag-dropout 0.2 --keep-tags 1"
    " --caption-dropout 0.3",
    "dreambooth": f"dataset crop {STOCK}/photos --size 32 --out photos\n"
    f"train dreambooth photos {PLAN} --text --as checkpoint"
    ' --class-prompt "a red house" --class-pictures 2 --class-weight 0.7 --checkpointing',
    "buckets": f"train lora {PHOTOS.replace('photos', 'shapes')} --rank 4 --shape buckets --set noise_offset=0.05",
    "velocity": f"train lora {PHOTOS} --rank 4 --base {STOCK}/velocity.safetensors --set velocity_as_noise=true",
    "rescue": f"train hypernet {PHOTOS} --rate 1 --steps 6 --snapshot-every 1",
    "aesthetic": f"train aesthetic {STOCK}/photos --name dusk --steps 3 --out dusk.safetensors",
}

# --- Files: whole command lines too

MERGED = f"--json --out made.safetensors --library {STOCK}"
MERGE, BAKE = f"merge {MERGED}", f"bake {MERGED} --steps 2 --prompts {STOCK}/four.txt"
HALVED = tuple((each, "half.safetensors --dtype float16") for each in ALGORITHMS)
AS_DIFFUSERS = tuple((each, "x.safetensors --dialect diffusers") for each in ("lora", "dora", "locon", "zorp"))
AS_PEFT = tuple((each, "peft --dialect peft") for each in ("lora", "dora", "loha", "locon"))
CONVERTED = (
    *(("hyper", "x.pt"), ("hyper", "x.safetensors"), ("zorp", "x.pt"), ("zorp", "x.png"), ("dusk", "x.pt")),
    *(("zorp", "x.bin --dialect diffusers"), ("zorp", "x.safetensors --dialect kohya")),
    *(("robot", "x.safetensors"), ("robot", "x.safetensors --dialect kohya")),
    *(*HALVED, *AS_DIFFUSERS, *AS_PEFT),
    *((each, f"x.safetensors --as lora --rank 4 --steps 2 --prompts {STOCK}/four.txt") for each in ("hyper", "linear")),
)
FILES = {
    **{f"convert/{name} to {to}": f"convert {STOCK}/{name}.safetensors {to}" for name, to in CONVERTED},
    "convert/there and back": f"convert {STOCK}/hyper.safetensors x.pt\nconvert x.pt y.safetensors\nshow x.pt --json",
    "convert/peft and back": f"convert {STOCK}/lora.safetensors peft --dialect peft\nconvert peft y.safetensors",
    "bake/lora": f"{BAKE} tiny lora:0.5:0.8",
    "bake/hypernet": f"{BAKE} tiny hyper:0.8",
    "bake/all": f"{BAKE} tiny hyper:0.3 linear:0.5 dora:0.4 lokr:0.3 robot:0.5",
    "bake/folder": f"{BAKE.replace('made.safetensors', 'made')} tiny linear:0.8",
    "merge/weighted sum": f"{MERGE} tiny other",
    "merge/blocks": f'{MERGE} tiny other --blocks "IN=0.2,IN04-IN07=0.6,M00=1,BASE=0" --dtype float16',
    "merge/added": f'{MERGE} other third tiny --mode add-difference --strength 0.7 --metadata \'{{"author": "me"}}\'',
    **{f"merge/{each}": f"{MERGE} other third --mode {each}" for each in ("sigmoid", "inverse-sigmoid", "slerp")},
    **{f"merge/{each}": f"{MERGE} other third tiny --mode {each} --share 0.4" for each in ("ties", "dare")},
    "merge/one": f"{MERGE} other --mode none --vae {STOCK}/third.safetensors --discard text --dtype bfloat16",
    "combine/exact": f"{MERGE} lora:0.8 locon:0.5",
    "combine/small": f"{MERGE} lora:0.8 loha:0.5 --rank 4",
    "combine/dora": f"{MERGE} dora:0.8 oft:0.5 --tolerance 0.3 --base tiny",
    "extract/rank": f"extract tiny other --rank 4 {MERGED}",
    "extract/tolerance": f"extract tiny other --tolerance 0.6 --conv-rank 0 --no-text --dtype float32 {MERGED}",
    "grid/axes": f'grid "a {{what}} <hypernet:hyper:{{s}}>" --x s=0,1 --y what=house,boat --z seed=7-8 {PAINT}{SHELF}',
    "grid/fields": f'grid {HOUSE} --x "sampler=Euler,Heun,DDIM" --y "guidance=3-9 [2]" {PAINT}',
    "grid/matrix": f'grid "a red house|at night|in snow" --matrix {PAINT}',
    "again/recipe": f'generate {HOUSE[:-1]} <lora:lora:0.5>" --out a.png {PAINT}{SHELF}\n'
    f"generate --recipe a.png --set seed=8 --sampler Heun --out b.png --json --library {STOCK}\nshow b.png --json",
    "dataset/check": f"dataset check {STOCK}/shapes --size 64 --json",
    "dataset/crop": f"dataset crop {STOCK}/shapes --size 48 --mirrors --out cut\n"
    "dataset caption cut --existing replace",
    "list/stock": f"list {STOCK} --json",
    **{
        f"show/{each}": f"show {STOCK}/{each}.safetensors --json"
        for each in ("hyper", "lora", "lokr", "zorp", "robot", "dusk", "other")
    },
}
VERBS = (
    "",
    "generate",
    "grid",
    "resume",
    "list",
    "show",
    "pull",
    "convert",
    "bake",
    "merge",
    "extract",
    "dataset crop",
)
KINDS = ("hypernet", "lora", "embedding", "dreambooth", "aesthetic")
HELP = [*VERBS, *(f"train {each}" for each in KINDS), *(f"dataset {each}" for each in ("check", "caption", "review"))]


def _broken_off() -> None:
    """A run that is broken off after its third step."""

    def stop(step: Any) -> None:
        if step.done == 3:
            raise KeyboardInterrupt

    base = velatura.tiny()
    plan = velatura.Plan.preset("lora", "tiny", "style")
    plan = plan.replace(steps=5, batch_size=2, pixels=32, snapshot_every=2, validation_pictures=2)
    lora = velatura.Lora.for_base(base, rank=4, seed=1, name="ink")
    with suppress(KeyboardInterrupt):
        velatura.train(base, lora, f"{STOCK}/photos", plan, out="run", on_step=stop)


def _attached() -> None:
    """Overlays attached by hand, at several strengths and side by side, with what they say of themselves."""
    base = velatura.tiny()
    hyper, lora, word = (velatura.open_overlay(f"{STOCK}/{each}.safetensors") for each in ("hyper", "lora", "zorp"))
    with velatura.attach(base, hyper, 0.6, on="prompt", blocks=["mid", "out"]) as laid:
        velatura.generate(base, "a house", seed=7, steps=4).save("hyper.png")
        laid.strength = 0.3
        velatura.generate(base, "a house", seed=7, steps=4).save("weaker.png")
        told = [str(laid.effect)]
    with (
        velatura.attach(base, word.with_name("night")),
        velatura.attach(base, lora, velatura.Strength(0.3, 0.6)) as laid,
    ):
        velatura.generate(base, "a night house", seed=7, steps=4).save("words.png")
        told.append(str(laid.effect))
    whole = ("in", "mid", "out")
    for each in velatura.attach_all(base, [(hyper, 0.5, whole), (hyper, -0.2, whole)], combine="sum"):
        velatura.generate(base, "a house", seed=7, steps=4).save("sum.png")
        each.detach()
    Path("effects.txt").write_text("\n".join(told), "utf-8")


def _many() -> None:
    """Recipes painted at once, with and without the same overlay."""
    base, lora = velatura.tiny(), velatura.open_overlay(f"{STOCK}/lora.safetensors")
    recipes = [
        velatura.Recipe(prompt=f"a {each} <lora:ink:{strength}>", seed=seed, steps=4)
        for each, strength, seed in (("house", 0.3, 7), ("boat", 0.6, 7), ("cat", 0, 8))
    ]
    for place, picture in enumerate(velatura.generate_many(base, recipes, overlays={"ink": lora})):
        picture.save(f"{place}.png")


def _bases() -> None:
    """A base written as a folder and in half precision, changed in memory, and told apart."""
    base, other = velatura.tiny(), velatura.open_base(f"{STOCK}/other.safetensors")
    velatura.save(base, "folder/")
    velatura.save(base, "half.safetensors", dtype="float16")
    mixed, _ = velatura.merge(base, other, 0.35, blocks="IN=0.2, M00=1")
    velatura.save(mixed, "mixed.safetensors")
    velatura.save(velatura.Difference.from_bases(base, other, name="robot"), "difference.safetensors")


def _shelf(words: str) -> str:
    """Where overlays are found, for words that call any."""
    return SHELF if "<" in words or "zorp" in words else ""


LINES = {
    **{f"picture/{name}": f"generate --out x.png {PAINT} {words}{_shelf(words)}" for name, words in PICTURES.items()},
    **{f"train/{name}": lines for name, lines in TRAININGS.items()},
    **FILES,
    **{f"help/{verb or 'velatura'}": f"{verb} --help" for verb in HELP},
}
CASES: dict[str, Case] = {
    **{name: tuple(lines.split("\n")) for name, lines in LINES.items()},
    "train/resumed": (_broken_off, "resume run"),
    "python/attached": (_attached,),
    "python/many": (_many,),
    "python/bases": (_bases,),
}
