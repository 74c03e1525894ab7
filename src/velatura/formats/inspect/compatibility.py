"""Compatibility of a hypernetwork's file with other programs, by the rules that their loaders have."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.structure import HypernetworkStructure
from velatura.tensors import Contents, as_dict

# Names that A1111 up to 1.8 allows in the zip, and those that 1.10 allows as well
A1111_ZIP_MEMBERS = {"data.pkl", "version"}
A1111_NEWER_ZIP_MEMBERS = {"byteorder", ".data/serialization_id"}
# Globals that A1111 allows in a pickle
A1111_PICKLE_NAMES = {
    "collections.OrderedDict",
    "_codecs.encode",
    "__builtin__.set",
    "builtins.set",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.modules.container.ParameterDict",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.DoubleStorage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ByteStorage",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
}
# Globals that velatura reads and torch.load(weights_only=True), as ComfyUI calls it, refuses
NOT_WEIGHTS_ONLY = {
    "torch.nn.modules.container.ParameterDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "torch._utils._rebuild_tensor",
}
COMFY_ACTIVATIONS = {"linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish"}
CONVERT_ADVICE = "velatura convert writes a .pt"


class ProgramSupport(BaseModel):
    """Answer to the question whether a program opens a file, with the reason or the restrictions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opens: bool
    why: str

    def __str__(self) -> str:
        answer = "yes" if self.opens else "no"
        return f"{answer}, {self.why}" if self.why else answer


def check_programs(contents: Contents, hypernetwork: Hypernetwork) -> dict[str, ProgramSupport]:
    """Return which programs open a hypernetwork's file.

    Args:
        contents: The file.
        hypernetwork: What velatura reads from it.

    Returns:
        The answers by the names of the programs.
    """
    a1111 = _check_a1111(contents)
    return {
        "A1111": a1111,
        "Forge": _check_forge(a1111),
        "ComfyUI": _check_comfyui(contents, hypernetwork),
        "diffusers": _refuse("it has no loader for hypernetworks; velatura.attach adds them to pipelines"),
    }


def _refuse(why: str) -> ProgramSupport:
    return ProgramSupport(opens=False, why=why)


def _check_a1111(contents: Contents) -> ProgramSupport:
    if contents.container == "safetensors":
        return _refuse(f"it reads hypernetworks from torch files only; {CONVERT_ADVICE}")
    refused_names = sorted(contents.pickle_globals - A1111_PICKLE_NAMES)
    if refused_names:
        return _refuse(f"it refuses files that name {refused_names[0]}; {CONVERT_ADVICE} without")
    other_members = {name for name in contents.members - A1111_ZIP_MEMBERS if not name.removeprefix("data/").isdigit()}
    if other_members - A1111_NEWER_ZIP_MEMBERS:
        return _refuse(
            f"it refuses zips of newer torch versions, which contain {min(other_members)}; {CONVERT_ADVICE} without"
        )
    if contents.path.suffix != ".pt" or contents.path.stem == "None":
        return _refuse(f"it lists files that end in .pt, and none called None.pt: rename {contents.path.name}")
    return ProgramSupport(opens=True, why="1.10, not before" if other_members else "1.4 and later")


def _check_forge(a1111: ProgramSupport) -> ProgramSupport:
    if not a1111.opens:
        return a1111
    return ProgramSupport(
        opens=True, why="as A1111 1.10 does; but users report that it has no effect there (Forge issue 275)"
    )


def _check_comfyui(contents: Contents, hypernetwork: Hypernetwork) -> ProgramSupport:
    if contents.container == "safetensors":
        return _refuse(f"it looks for widths as numbers, which only torch files have; {CONVERT_ADVICE}")
    refused_names = sorted(contents.pickle_globals & NOT_WEIGHTS_ONLY)
    if refused_names:
        return _refuse(f"torch.load(weights_only=True) refuses {refused_names[0]}; {CONVERT_ADVICE} without")
    if contents.path.suffix in {".safetensors", ".sft"}:
        return _refuse(f"it opens {contents.path.name} as safetensors because of its ending: rename it to .pt")
    payload = as_dict(contents.payload) or {}
    activation = payload.get("activation_func", "linear")
    if activation not in COMFY_ACTIVATIONS:
        return _refuse(f"it does not know the activation {str(activation)[:40]}")
    if any(isinstance(key, str) and key.isdecimal() for key in payload):
        return _refuse("it fails on widths that are written as text")
    return ProgramSupport(opens=True, why=_describe_comfyui_differences(payload, hypernetwork.structure))


def _describe_comfyui_differences(payload: Mapping[object, object], structure: HypernetworkStructure) -> str:
    """Say how ComfyUI's result differs from velatura's for a file that it opens; "" if it does not."""
    # ComfyUI takes every second weight for a norm's, so it does not recognise the last layer
    activates = structure.layer_norm or bool(payload.get("activate_output", False))
    is_deep = len(structure.layers) > 3 or structure.layer_norm or bool(payload.get("last_layer_dropout", False))
    differences = {
        "it activates the output too": activates and not structure.activate_output,
        "it does not activate the output": structure.activate_output and not activates,
    }
    reasons = [
        difference for difference, is_present in differences.items() if is_present and structure.activation != "linear"
    ]
    if payload.get("use_dropout", False) and is_deep and len(structure.layers) > 2:
        reasons.append("it applies dropout at random while it generates, so that a seed does not repeat a picture")
    return f"but {' and '.join(reasons)}" if reasons else ""
