"""Which programs open a hypernetwork's file: their rules as they are, odd ones too, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.structure import HypernetworkStructure
from velatura.tensors import Contents, as_dict

# what A1111 looks for in the zip before it reads it, until 1.8, and what 1.10 also lets through
A1111_ZIP_MEMBERS = {"data.pkl", "version"}
A1111_NEWER_ZIP_MEMBERS = {"byteorder", ".data/serialization_id"}
A1111_PICKLE_NAMES = {
    *("collections.OrderedDict", "_codecs.encode", "__builtin__.set", "builtins.set"),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.nn.modules.container.ParameterDict"),
    *("torch.FloatStorage", "torch.HalfStorage", "torch.BFloat16Storage", "torch.DoubleStorage"),
    *("torch.LongStorage", "torch.IntStorage", "torch.ByteStorage"),
    *("numpy.core.multiarray.scalar", "numpy.dtype"),
}
NOT_WEIGHTS_ONLY = {  # what torch.load(weights_only=True), as ComfyUI calls it, refuses of the names known here
    *("torch.nn.modules.container.ParameterDict", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.dtype", "torch._utils._rebuild_tensor"),
}
COMFY_ACTIVATIONS = {"linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish"}
CONVERT_ADVICE = "velatura convert writes a .pt"


class ProgramSupport(BaseModel):
    """Whether a program opens a file, and why or how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opens: bool
    why: str

    def __str__(self) -> str:
        return f"{'yes' if self.opens else 'no'}, {self.why}" if self.why else "yes" if self.opens else "no"


def check_programs(contents: Contents, hypernetwork: Hypernetwork) -> dict[str, ProgramSupport]:
    """What each program makes of a file that is read here as this hypernetwork."""
    a1111 = _check_a1111(contents)
    return {
        "A1111": a1111,
        "Forge": _check_forge(a1111),
        "ComfyUI": _check_comfyui(contents, hypernetwork),
        "diffusers": ProgramSupport(
            opens=False, why="it has no loader for hypernetworks; velatura.attach lays it on pipelines"
        ),
    }


def _check_a1111(contents: Contents) -> ProgramSupport:
    if contents.container == "safetensors":
        return ProgramSupport(opens=False, why=f"it reads hypernetworks from torch files only; {CONVERT_ADVICE}")
    if refused_names := sorted(contents.pickle_globals - A1111_PICKLE_NAMES):
        return ProgramSupport(
            opens=False, why=f"it refuses files that name {refused_names[0]}; {CONVERT_ADVICE} without"
        )
    other_members = {name for name in contents.members - A1111_ZIP_MEMBERS if not name.removeprefix("data/").isdigit()}
    if other_members - A1111_NEWER_ZIP_MEMBERS:
        return ProgramSupport(
            opens=False,
            why=f"it refuses the zips of newer torch ({min(other_members)} in it); {CONVERT_ADVICE} without",
        )
    if contents.path.suffix != ".pt" or contents.path.stem == "None":
        return ProgramSupport(
            opens=False, why=f"it lists files that end in .pt, and none called None.pt: rename {contents.path.name}"
        )
    return ProgramSupport(opens=True, why="1.10, not before" if other_members else "1.4 and later")


def _check_forge(a1111: ProgramSupport) -> ProgramSupport:
    if not a1111.opens:
        return a1111
    return ProgramSupport(
        opens=True, why="as A1111 1.10; people report that it then has no effect there (Forge issue 275)"
    )


def _check_comfyui(contents: Contents, hypernetwork: Hypernetwork) -> ProgramSupport:
    if contents.container == "safetensors":
        return ProgramSupport(
            opens=False, why=f"it looks for widths as numbers, which only torch files have; {CONVERT_ADVICE}"
        )
    if refused_names := sorted(contents.pickle_globals & NOT_WEIGHTS_ONLY):
        return ProgramSupport(
            opens=False, why=f"torch.load(weights_only=True) refuses {refused_names[0]}; {CONVERT_ADVICE} without"
        )
    if contents.path.suffix in {".safetensors", ".sft"}:
        return ProgramSupport(
            opens=False, why=f"it takes {contents.path.name} for safetensors by its ending: rename it to .pt"
        )
    payload = as_dict(contents.payload) or {}
    activation = payload.get("activation_func", "linear")
    if activation not in COMFY_ACTIVATIONS:
        return ProgramSupport(opens=False, why=f"it does not know the activation {str(activation)[:40]}")
    if any(isinstance(key, str) and key.isdecimal() for key in payload):
        return ProgramSupport(opens=False, why="it stumbles over widths that are written as text")
    return ProgramSupport(opens=True, why=_describe_comfyui_differences(payload, hypernetwork.structure))


def _describe_comfyui_differences(payload: Mapping[object, object], structure: HypernetworkStructure) -> str:
    """What ComfyUI does otherwise with a file that it opens."""
    # it takes every second weight for a norm's, and so does not notice that the last layer is the last
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
        reasons.append("it drops out at random while it paints, so that no picture comes out twice")
    return f"but {' and '.join(reasons)}" if reasons else ""
