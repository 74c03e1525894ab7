"""Names in a pickle that carry no weights: classes of settings, paths, dates and callbacks, which trainers leave there.

A file may call them and set their state. Nothing of that is done: each becomes a text, the name itself.
"""

from __future__ import annotations

import torch

# Classes that trainers use as keys of their callbacks in checkpoints, also below names that are not classes
KEY_PREFIXES = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.", "main.")
# Packages of settings and callbacks whose classes hold no weights
SETTINGS_PACKAGES = (
    "omegaconf.",
    "pytorch_lightning.",
    "lightning.pytorch.",
    "lightning.fabric.",
    "lightning_fabric.",
    "lightning_utilities.",
    "ml_collections.config_dict.",
    "yacs.config.",
    "transformers.training_args.",
    "transformers.trainer_utils.",
    "transformers.trainer_callback.",
    "accelerate.utils.dataclasses.",
)
SETTINGS_CLASSES = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PurePath",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "datetime.datetime",
    "datetime.date",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "munch.Munch",
    "torch.device",
    "typing.Any",
    "typing.Union",
}
# Types of values, which settings and defaultdicts name
BUILTIN_TYPES = {
    "bool",
    "complex",
    "float",
    "int",
    "list",
    "long",
    "object",
    "str",
    "tuple",
    "unicode",
    "range",
    "slice",
}
NUMPY_TYPES = {"ndarray", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"}


class InertName(str):
    """Name of a class without weights, and of what a pickle builds with it. A call or a state changes nothing."""

    __slots__ = ()


def is_inert(module: str, name: str) -> bool:
    """Return True if a name is known to stand for no weights."""
    text = f"{module}.{name}"
    if text.startswith(KEY_PREFIXES) or text in SETTINGS_CLASSES:
        return True
    if module in {"builtins", "__builtin__"}:
        return name in BUILTIN_TYPES
    if module == "numpy":
        return name in NUMPY_TYPES
    if module == "torch":
        return isinstance(getattr(torch, name, None), torch.dtype)
    return text.startswith(SETTINGS_PACKAGES) and name.isidentifier() and name[0].isupper()
