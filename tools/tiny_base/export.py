"""Put the trained parts where the package ships them: a diffusers folder in fp16, and the bundled pictures."""

import json
import shutil
import sys
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from ..drawing.paint import paint
from ..drawing.places import PLACES
from ..drawing.scene import COLOURS, Scene, caption, random_scene
from ..drawing.subjects import SUBJECTS
from .architecture import SCHEDULER
from .captions import tokenizer
from .clip import trained_clip
from .unet import trained_unet
from .vae import measure_scale, trained_vae

PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def export_base(work: Path, folder: Path) -> None:
    """Write every part to `folder` as diffusers and transformers would read it."""
    folder.mkdir(parents=True, exist_ok=True)
    unet, text = trained_unet(work)
    unet.set_default_attn_processor()
    unet.half().to(memory_format=torch.contiguous_format).save_pretrained(folder / "unet")
    _scaled_vae(work).half().save_pretrained(folder / "vae")
    text_model = CLIPTextModel(text.config)
    text_model.load_state_dict(text.state_dict())
    text_model.half().save_pretrained(folder / "text_encoder")
    _export_vision(work, folder)
    tokenizer(work).save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **PARTS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def _scaled_vae(work: Path) -> AutoencoderKL:
    vae = trained_vae(work)
    vae.register_to_config(scaling_factor=round(measure_scale(vae, work), 5))
    return vae.cpu().to(memory_format=torch.contiguous_format)


def _export_vision(work: Path, folder: Path) -> None:
    clip = trained_clip(work, "vision" if (work / "vision.pt").exists() else "clip")
    vision = CLIPVisionModelWithProjection(clip.config.vision_config)
    state = _prefixed("vision_model.", clip.vision_model.state_dict())
    vision.load_state_dict(state | {"visual_projection.weight": clip.visual_projection.weight.detach()})
    vision.half().save_pretrained(folder / "clip_vision")
    text_side = {"text_projection.weight": clip.text_projection.weight, "logit_scale": clip.logit_scale}
    save_file(
        {key: value.detach().half() for key, value in text_side.items()},
        folder / "clip_vision" / "text_projection.safetensors",
    )


def adopt_base(folder: Path, work: Path) -> None:
    """Lay the package's weights into the work folder as snapshots at step 0, for training to go on from."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    unet = _prefixed("unet.", load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    text = load_file(folder / "text_encoder" / "model.safetensors")
    vision = load_file(folder / "clip_vision" / "model.safetensors")
    heads = load_file(folder / "clip_vision" / "text_projection.safetensors")
    clip = _prefixed("text_model.", text) | vision | heads
    for name, tensors in (("vae", vae), ("unet", unet | _prefixed("text.", text)), ("clip", clip)):
        if (work / f"{name}.pt").exists():
            sys.exit(f"{work / name}.pt is there already: adopt into another work folder")
        weights = {key: value.float() for key, value in tensors.items()}
        torch.save({"step": 0, "model": weights, "ema": weights}, work / f"{name}.pt")


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def export_pictures(folder: Path) -> None:
    """Sixteen neon drawings, sixteen blueprints and eight of one robot, with captions that do not name the style."""
    for style, seed in (("neon", 7), ("blueprint", 11)):
        scenes = style_scenes(style, seed)
        _write(folder / style, scenes, [caption(scene, Random(scene.seed), style_word="") for scene in scenes])
    robots = [robot_scene(i) for i in range(8)]
    captions = [caption(scene, Random(scene.seed), style_word="").replace("red robot", "robot") for scene in robots]
    _write(folder / "robot", robots, captions)


def robot_scene(i: int) -> Scene:
    """Return the i-th scene of the robot: places, times and positions in turn."""
    return Scene(
        "robot",
        "red",
        list(PLACES)[i % len(PLACES)],
        ("day", "dusk", "night")[i % 3],
        "poster",
        size=0.34,
        x=(0.42, 0.5, 0.58)[i % 3],
        seed=i,
    )


def style_scenes(style: str, seed: int) -> list[Scene]:
    """Sixteen scenes from which a style can be learned: every subject at most once, places and colours in turn."""
    return [style_scene(i, style, seed) for i in range(16)]


def style_scene(i: int, style: str, seed: int) -> Scene:
    """Return the i-th scene of a style: subjects, colours and places in turn."""
    subjects, colours, places = list(SUBJECTS), list(COLOURS)[:9], list(PLACES)
    rng = Random(seed * 100 + i)
    drawn = random_scene(rng, held_out=None, styles=[style])
    return Scene(
        subject=subjects[(7 * i + seed) % 20],
        colour=colours[(4 * i + seed) % 9],
        place=places[(3 * i + seed) % 10],
        time=drawn.time,
        style=style,
        size=0.33,
        x=0.5 + rng.uniform(-0.08, 0.08),
        turn=drawn.turn,
        seed=drawn.seed,
    )


def _write(folder: Path, scenes: list[Scene], captions: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (scene, text) in enumerate(zip(scenes, captions, strict=True)):
        paint(scene).save(folder / f"{i:02}.png", optimize=True)
        (folder / f"{i:02}.txt").write_text(text + "\n")
