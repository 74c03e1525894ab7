"""How long an SD1.5-shaped checkpoint takes to open and what memory it needs, beside a bare read of its file."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from velatura.formats.checkpoints.ldm_keys import unet_to_ldm, vae_to_ldm
from velatura.formats.checkpoints.ldm_text import clip_to_ldm
from velatura.tensors import write_safetensors

GIB = 2**30
ROUNDS = 3

BARE_READ = """
import sys
with open(sys.argv[1], "rb") as file:
    data = file.read()
"""
OPEN_BASE = """
import sys
import velatura
base = velatura.open_base(sys.argv[1], dtype=sys.argv[2], device="cpu")
"""
# what either costs before it has read anything is taken off: modules, and CLIP's vocabulary
IMPORT_VELATURA = """
import velatura
from velatura.formats.vocabulary import clip_tokenizer

velatura.tiny()
clip_tokenizer(pads_with_zero=False)
"""
IMPORTS = {BARE_READ: "", OPEN_BASE: IMPORT_VELATURA}
MEASURE_PROGRAM = """
import json, pathlib, re, time

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

{imports}
before, start, busy = peak(), time.perf_counter(), time.process_time()
{work}
print(json.dumps([time.perf_counter() - start, time.process_time() - busy, peak() - before]))
"""


def models() -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """The three models of an SD1.5, without values."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=[128, 256, 512, 512],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, vocab_size=49408)
        )
    return unet, vae, text


def write_checkpoint(path: Path, dtype: torch.dtype) -> None:
    """A checkpoint of small random values."""
    unet, vae, text = (
        {key: torch.empty(tensor.shape, dtype=dtype).normal_(std=0.02) for key, tensor in model.state_dict().items()}
        for model in models()
    )
    write_safetensors(path, {**unet_to_ldm(unet), **vae_to_ldm(vae), **clip_to_ldm(text)})


def measure(work: str, *arguments: str) -> tuple[float, float, float]:
    """Seconds, those of work, and peak bytes of a program of its own, without its imports: the best of a few."""
    program = MEASURE_PROGRAM.format(imports=IMPORTS[work], work=work)
    results: list[list[float]] = []
    for _ in range(ROUNDS):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
    seconds, busy, peak = (min(values) for values in zip(*results, strict=True))
    return seconds, busy, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--opened-in", default=None, help="the precision to open it in, if another")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd15.safetensors"
        write_checkpoint(path, getattr(torch, options.precision))
        size = path.stat().st_size
        bare_read = measure(BARE_READ, str(path))
        opened = measure(OPEN_BASE, str(path), options.opened_in or options.precision)
    print(f"SD1.5-shaped checkpoint, {options.precision}: {size / GIB:.2f} GiB")
    for name, (seconds, busy, peak) in {"a bare read": bare_read, "open_base": opened}.items():
        print(f"{name:36}{seconds:8.2f} s{busy:8.2f} s of work{peak / GIB:8.2f} GiB")
    times, works = (after / before for before, after in list(zip(bare_read, opened, strict=True))[:2])
    print(f"{'beside the read, and the size':36}{times:8.2f} x{works:8.2f} x        {opened[2] / size:8.2f} x")


if __name__ == "__main__":
    main()
