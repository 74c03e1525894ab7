"""What merging takes: seconds and memory for two files of a whole Stable Diffusion, beside copying one of them.

`python benchmarks/merging.py` writes files of random weights in half precision, as large as SD1's (2 GB each; 6.9 GB
with --sdxl), into --folder, and takes them away again.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from velatura.formats.checkpoints.ldm_families import TEXT_ENCODER_LAYOUTS
from velatura.formats.checkpoints.ldm_keys import unet_to_ldm, vae_to_ldm
from velatura.merging.checkpoints.merge import merge
from velatura.merging.checkpoints.options import Saving
from velatura.tensors import LazyTensors, write_safetensors

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
SD1_UNET = {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)}
SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


class RandomTensors(LazyTensors):
    """Tensors of given shapes whose values are drawn when they are asked for."""

    def __init__(self, shapes: dict[str, Tensor], seed: int) -> None:
        self._shapes, self._seed = shapes, seed

    def meta_tensor(self, key: str) -> Tensor:
        """A tensor's shape, in half precision."""
        return self._shapes[key].half()

    def __getitem__(self, key: str) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed + len(key))
        return (torch.randn(self._shapes[key].shape, generator=generator) * 0.02).half()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def shapes(kind: str) -> dict[str, Tensor]:
    """What the checkpoint of a kind holds, on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(SDXL_UNET if kind == "SDXL" else SD1_UNET))
        towers = [CLIPTextModel(CLIPTextConfig(**CLIP_L))]
        if kind == "SDXL":
            towers.append(CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=1280, **CLIP_G)))
        found = {**unet_to_ldm(unet.state_dict()), **vae_to_ldm(AutoencoderKL(**VAE).state_dict())}
        for text_keys, tower in zip(TEXT_ENCODER_LAYOUTS[kind], towers, strict=True):
            found |= text_keys.to_checkpoint(tower.state_dict())
    return found


def run_merge(folder: Path, models: int, report: str) -> None:
    """Merge in this process, and print how long it took and how much memory at most."""
    files = [folder / f"{name}.safetensors" for name in "abc"[:models]]
    start = time.perf_counter()
    saving = Saving(keeps_recipe=report == "whole")
    model_c = files[2] if models > 2 else None
    merge(files[0], files[1], 0.35, minus=model_c, out=folder / "out.safetensors", saving=saving)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - start:7.1f} s   {peak:5.2f} GiB at most")


def main() -> None:
    """Write the files, and merge them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdxl", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--merge", nargs=2)
    options = parser.parse_args()
    if options.merge:
        run_merge(options.folder, int(options.merge[0]), options.merge[1])
        return
    kind = "SDXL" if options.sdxl else "SD1"
    with TemporaryDirectory(dir=options.folder) as name:
        folder, tensor_shapes = Path(name), shapes(kind)
        for seed, letter in enumerate("abc"):
            write_safetensors(folder / f"{letter}.safetensors", RandomTensors(tensor_shapes, seed), {"format": "pt"})
        size = (folder / "a.safetensors").stat().st_size / 2**30
        print(f"{kind}: {len(tensor_shapes)} tensors, {size:.2f} GiB a file")
        start = time.perf_counter()
        shutil.copyfile(folder / "a.safetensors", folder / "out.safetensors")
        print(f"  copying one                        {time.perf_counter() - start:7.1f} s")
        for label, models, report in (
            ("weighted sum", 2, "plain"),
            ("weighted sum, recipe with hashes", 2, "whole"),
            ("add difference, recipe with hashes", 3, "whole"),
        ):
            words = [sys.executable, __file__, "--folder", str(folder), "--merge", str(models), report]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            print(f"  {label:35}{done.stdout.rstrip()}")


if __name__ == "__main__":
    main()
