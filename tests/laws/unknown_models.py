"""Rows of the law of unknown things: readers of bases, their parts, and what lies beside them.

A row writes valid files, to which it adds an unknown thing if it is told to, and returns what is read from them.
"""

import json

import torch
from safetensors.torch import load_file, save_file

import velatura
from tests.formats.small_base import small_base, small_state, write_checkpoint
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX
from velatura.formats.hypernetworks import hns

THING = "foo_unknown"
YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"  # as it was trained
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
    unet_config:
      params:
        attention_resolutions: [ 4, 2, 1 ]
        num_heads: 8
lightning:
  trainer:
    max_steps: 3
"""


HINTS = {"velatura.base": json.dumps({"unet": {}, "vae": {}, "text": {}})}  # without which parts need a known family


def open_weights(path, **options):
    """Return what a base predicts, and the sums of its weights."""
    base = velatura.open_base(path, dtype="float32", device="cpu", **options)
    models = (base.unet, base.vae, base.text.encoders[0].model)
    sums = [float(tensor.double().sum()) for model in models for tensor in model.state_dict().values()]
    return base.family.prediction, sums


def checkpoint(folder, is_odd):
    extra = {THING: torch.ones(2)} if is_odd else {}
    write_checkpoint(folder / "x.safetensors", small_state() | extra)
    return open_weights(folder / "x.safetensors")


def checkpoint_with_another_vae(folder, is_odd):
    extra = {THING: torch.ones(2)} if is_odd else {}
    write_checkpoint(folder / "x.safetensors", small_state() | extra, HINTS)
    save_file(vae_state(), folder / "vae.safetensors")
    return open_weights(folder / "x.safetensors", vae=folder / "vae.safetensors")


def checkpoint_entries(is_inside):
    """Return a row for a .ckpt with an unknown entry, beside the weights or among them."""

    def read(folder, is_odd):
        entry = {THING: "x"} if is_odd else {}
        weights = small_state() | (entry if is_inside else {})
        write_checkpoint(folder / "y.ckpt", small_state())  # with the vocabulary
        others = {"epoch": 3, "pytorch-lightning_version": "1.4.2", "callbacks": {}, "lr_schedulers": []}
        torch.save({"state_dict": weights, **others, **({} if is_inside else entry)}, folder / "x.ckpt")
        return open_weights(folder / "x.ckpt")

    return read


def checkpoint_for_two_parts(folder, is_odd):
    """Take the text encoder and the autoencoder from one checkpoint of torch, and the UNet from another one."""
    write_checkpoint(folder / "unet.safetensors", small_state(), HINTS)
    torch.save({"state_dict": small_state(), **({THING: 1} if is_odd else {})}, folder / "x.ckpt")
    return open_weights(folder / "x.ckpt", unet=folder / "unet.safetensors", text=folder / "x.ckpt")


def checkpoint_settings(folder, is_odd):
    """Write the settings that velatura puts into the metadata of a checkpoint."""
    hints = {"unet": {"sample_size": 32}, "vae": {}, "text": {}} | ({THING: {"x": 1}} if is_odd else {})
    write_checkpoint(folder / "x.safetensors", small_state(), {"velatura.base": json.dumps(hints)})
    return open_weights(folder / "x.safetensors")


def yaml_beside(change):
    """Return a row for the .yaml beside a checkpoint, to which a function adds an unknown entry."""

    def read(folder, is_odd):
        write_checkpoint(folder / "x.safetensors", small_state())
        (folder / "x.yaml").write_text(change(YAML) if is_odd else YAML)
        return open_weights(folder / "x.safetensors")

    return read


def vae_state():
    return {key: tensor for key, tensor in small_state().items() if key.startswith(VAE_PREFIX)}


def vae_beside(folder, is_odd):
    write_checkpoint(folder / "x.safetensors", small_state())
    save_file(vae_state() | ({THING: torch.ones(2)} if is_odd else {}), folder / "x.vae.safetensors")
    return open_weights(folder / "x.safetensors")


def vae_given(folder, is_odd):
    write_checkpoint(folder / "x.safetensors", small_state(), HINTS)
    save_file(vae_state() | ({THING: torch.ones(2)} if is_odd else {}), folder / "vae.safetensors")
    return open_weights(folder / "x.safetensors", vae=folder / "vae.safetensors")


def vae_entry(folder, is_odd):
    write_checkpoint(folder / "x.safetensors", small_state(), HINTS)
    torch.save({"state_dict": vae_state(), **({THING: 1} if is_odd else {})}, folder / "vae.pt")
    return open_weights(folder / "x.safetensors", vae=folder / "vae.pt")


def folder_file(name, add, **options):
    """Return a row for a diffusers folder, to one of whose JSON files a function adds an unknown thing."""

    def read(folder, is_odd):
        velatura.save(small_base(), folder / "x")
        file = folder / "x" / name
        values = json.loads(file.read_text())
        file.write_text(json.dumps(values | (add if is_odd else {})))
        return open_weights(folder / "x", **{key: folder / value for key, value in options.items()})

    return read


ROWS = {
    "checkpoint": checkpoint,
    "checkpoint with another VAE": checkpoint_with_another_vae,
    "checkpoint of torch for two parts": checkpoint_for_two_parts,
    "checkpoint, settings in its metadata": checkpoint_settings,
    "checkpoint of torch, beside its weights": checkpoint_entries(is_inside=False),
    "checkpoint of torch, among its weights": checkpoint_entries(is_inside=True),
    ".yaml of a checkpoint": yaml_beside(lambda text: text.replace("    timesteps", f"    {THING}: 3\n    timesteps")),
    ".yaml of a checkpoint, at its top": yaml_beside(lambda text: f"{THING}:\n  - 3\n{text}"),
    ".yaml of a checkpoint, in brackets": yaml_beside(lambda text: f"{text}model: {{params: {{{THING}: 1}}}}\n"),
    "VAE beside a checkpoint": vae_beside,
    "VAE given for a checkpoint": vae_given,
    "VAE of torch": vae_entry,
    "diffusers folder, a component": folder_file("model_index.json", {THING: ["diffusers", "FooModel"]}),
    "diffusers folder, a setting": folder_file("model_index.json", {THING: True}),
    "diffusers folder, a setting of its UNet": folder_file("unet/config.json", {THING: 1}),
    "diffusers folder, a setting of its VAE": folder_file("vae/config.json", {THING: 1}),
    "diffusers folder, a setting of its text encoder": folder_file("text_encoder/config.json", {THING: 1}),
    "diffusers folder, a setting of its scheduler": folder_file("scheduler/scheduler_config.json", {THING: 1}),
    "diffusers folder with another VAE": folder_file("unet/config.json", {THING: 1}, vae="x/vae"),
    "diffusers folder with another VAE, a component": folder_file(
        "model_index.json", {THING: ["diffusers", "FooModel"]}, vae="x/vae"
    ),
}


def folder_tensor(part, name):
    """Return a row for a diffusers folder whose weights of a part have an unknown tensor."""

    def read(folder, is_odd):
        velatura.save(small_base(), folder / "x")
        file = folder / "x" / part / name
        tensors = load_file(file)
        save_file(tensors | ({THING: torch.ones(2)} if is_odd else {}), file, {"format": "pt"})
        return open_weights(folder / "x")

    return read


def vae_alone(folder, is_odd):
    """Write an autoencoder under names without a prefix, where every tensor is its own."""
    write_checkpoint(folder / "x.safetensors", small_state())
    tensors = {key.removeprefix(VAE_PREFIX): tensor for key, tensor in vae_state().items()}
    save_file(tensors | ({THING: torch.ones(2)} if is_odd else {}), folder / "x.vae.safetensors")
    return open_weights(folder / "x.safetensors")


def checkpoint_part(folder, is_odd):
    extra = {f"model.diffusion_model.{THING}": torch.ones(2)} if is_odd else {}
    write_checkpoint(folder / "x.safetensors", small_state() | extra)
    return open_weights(folder / "x.safetensors")


def composition(text):
    """Return a row for a composition of hypernetworks (.hns) with an unknown part."""

    def read(folder, is_odd):
        (folder / "x.hns").write_text(text if is_odd else '[("inca", 0.5), {"maya": 1}]')
        return hns.read_hns(folder / "x.hns")

    return read


# What would give another result is refused
REFUSED = {
    "checkpoint, in its UNet": checkpoint_part,
    "VAE alone": vae_alone,
    "diffusers folder, a tensor of its UNet": folder_tensor("unet", "diffusion_pytorch_model.safetensors"),
    "diffusers folder, a tensor of its VAE": folder_tensor("vae", "diffusion_pytorch_model.safetensors"),
    "diffusers folder, a tensor of its text encoder": folder_tensor("text_encoder", "model.safetensors"),
    "composition, a call": composition(f'[("inca", 0.5), {THING}("maya")]'),
    "composition, a setting of a part": composition(f'[("inca", 0.5, "{THING}")]'),
    "composition, a name": composition(f'[("inca", {THING})]'),
}
