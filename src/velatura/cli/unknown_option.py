"""What an unknown option is called here: people come with the options of other programs.

`describe_unknown_option` is what `app` prints for an option that a command does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from velatura.errors import OTHER_PROGRAMS_WORDS

# Options of A1111, diffusers' and kohya's scripts and stable-diffusion.cpp, and ours in their place
OTHER_PROGRAMS_OPTIONS = {
    "ckpt": ("--base",),
    "ckpt_path": ("--base",),
    "model": ("--base",),
    "pretrained_model_name_or_path": ("--base",),
    "batch_count": ("--count",),
    "n_iter": ("--count",),
    "n_samples": ("--count",),
    "num_images": ("--count",),
    "caption_dropout_rate": ("--caption-dropout",),
    "embeddings_dir": ("--library",),
    "hypernetwork_dir": ("--library",),
    "lora_dir": ("--library",),
    "lora_model_dir": ("--library",),
    "library": ("the folder without an option",),  # where a command takes the folder itself
    "hypernetwork": ("--overlay",),
    "lora": ("--overlay",),
    "init_img": ("--image",),
    "input": ("--image",),
    "flip_aug": ("--set flip=true",),
    "random_flip": ("--set flip=true",),
    "network_alpha": ("--alpha",),
    "network_dim": ("--rank",),
    "network_weights": ("--start",),
    "optimizer_type": ("--optimizer",),
    "output": ("--out",),
    "output_dir": ("--out",),
    "output_name": ("--name",),
    "save_every_n_steps": ("--snapshot-every",),
    "face_restoration_model": ("--face-restorer",),
    "code_former_weight": ("--codeformer-weight",),
    "scale": ("--cfg", "--strength"),
    "size": ("--width and --height", "--pixels"),
    "strength": ("--denoising",),
    "train_data_dir": ("the folder without an option",),
    "validation_steps": ("--preview-every",),
}
FIELD_OPTIONS = {"batch_size": "batch", "learning_rate": "rate"}  # fields of a plan, and their parameters
SET_OPTION = "--set"
MAX_SIMILAR = 3


def describe_unknown_option(name: str, options: Mapping[str, str]) -> str:
    """Return what is wrong with an option that a command does not have, and what to write instead.

    Args:
        name: The option as it was written, such as "--num-inference-steps".
        options: Options of the command by the names of their parameters.
    """
    word = name.lstrip("-").lower().replace("-", "_")
    if meant := _find_option(word, options):
        return f"no such option: {name}: velatura calls it {meant}"
    if similar := get_close_matches(name, options.values(), n=MAX_SIMILAR):
        return f"no such option: {name}: did you mean {' or '.join(similar)}?"
    return f"no such option: {name}"


def _find_option(word: str, options: Mapping[str, str]) -> str:
    """Return the option for another program's word, "" if the command has none for it.

    Args:
        word: The word, with underscores.
        options: Options of the command by the names of their parameters.
    """
    written = set(options.values())
    for option in OTHER_PROGRAMS_OPTIONS.get(word, ()):
        if not option.startswith("--") or option.split()[0] in written:
            return option
    field = OTHER_PROGRAMS_WORDS.get(word, word)
    parameter = FIELD_OPTIONS.get(field, field)
    if parameter in options:
        return options[parameter]
    is_field = word in OTHER_PROGRAMS_WORDS or (SET_OPTION in written and _is_field(word, options))
    return f"{SET_OPTION} {field}=VALUE" if is_field and SET_OPTION in written else ""


def _is_field(word: str, options: Mapping[str, str]) -> bool:
    """Return True for a field of the recipe or of the plan that `--set` of the command changes."""
    if "prompt" in options:
        from velatura.sampling.recipe.recipe import Recipe

        return word in Recipe.model_fields
    from velatura.training.plan import Plan

    return word in Plan.model_fields
