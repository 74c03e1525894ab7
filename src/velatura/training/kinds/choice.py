"""Choose the kind of overlay to train: which kind serves a purpose, and what it costs on a machine.

CHOICES is the table of advice. Costs are estimated without opening the base; `velatura train ... --dry-run` measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from velatura.training.plan import Plan

Purpose = Literal["style", "subject", "mood", "word"]
TrainedKind = Literal["hypernet", "lora", "embedding", "dreambooth", "aesthetic"]
PURPOSES: dict[Purpose, str] = {
    "style": "how pictures look: a way of drawing, a palette, a light",
    "subject": "one thing, animal or person, to be recognised",
    "mood": "a general feeling, without training",
    "word": "a name for what the base can nearly paint already",
}


class Advice(NamedTuple):
    """Kinds to train for a purpose: the first choice and why, the second one and when it is the better one."""

    first: TrainedKind
    reason: str
    second: TrainedKind
    second_if: str


TINY = "tiny"
ANY_FAMILY = "any"
CHOICES: dict[Purpose, dict[str, Advice]] = {
    "style": {
        ANY_FAMILY: Advice(
            "lora",
            "a style changes weights everywhere, and every program opens a LoRA",
            "hypernet",
            "the style should act on the whole picture, also where no word names it",
        ),
        # As docs/overlays.md found
        TINY: Advice(
            "lora",
            "measured, it shows a style with its subject as often as DreamBooth, and more often than a hypernetwork",
            "hypernet",
            "the style should act on the whole picture, also where no word names it",
        ),
    },
    "subject": {
        ANY_FAMILY: Advice(
            "lora",
            "a new subject needs changed weights, and a LoRA changes few of them and keeps the rest of the base",
            "dreambooth",
            "the likeness is not close enough, and the memory and the disk have room",
        ),
        # As docs/overlays.md found
        TINY: Advice(
            "lora",
            "measured, it shows a subject as often as DreamBooth and keeps more of what else the base paints",
            "dreambooth",
            "all weights should learn the subject, and there is room for a file of 35 MB",
        ),
    },
    "mood": {
        ANY_FAMILY: Advice(
            "aesthetic",
            "CLIP reads the pictures once, so there is nothing to train and little to lose",
            "hypernet",
            "the mood has to show clearly in every picture",
        ),
    },
    "word": {
        ANY_FAMILY: Advice(
            "embedding",
            "nothing in the base changes but one new word, and its file has a few kilobytes",
            "lora",
            "the base cannot paint it, whatever the words",
        ),
    },
}

# Floating-point operations of a forward pass of the UNet for one picture of the family's own size, by torch's counter
FORWARD_FLOPS = {"tiny": 0.885e9, "SD1": 0.803e12, "SD2": 2.149e12, "SDXL": 6.761e12}
UNET_PARAMETERS = {"tiny": 8_739_076, "SD1": 859_520_964, "SD2": 865_910_724, "SDXL": 2_567_463_684}
# Rank 16 in the layers that `velatura train lora` changes by default
LORA_PARAMETERS = {"tiny": 1_219_200, "SD1": 3_188_736, "SD2": 3_319_808, "SDXL": 23_224_320}
CONTEXT_WIDTHS = {
    "tiny": (64, 96, 128, 192),
    "SD1": (320, 640, 768, 1280),
    "SD2": (320, 640, 1024, 1280),
    "SDXL": (640, 1280, 2048),
}
TOKEN_WIDTH = {"tiny": 96, "SD1": 768, "SD2": 1024, "SDXL": 768 + 1280}  # features of a word, in all text encoders
# GiB of activations that one picture's backward pass needs in half precision, counted on the UNet's saved tensors
ACTIVATION_GIB = {"tiny": 0.02, "SD1": 3.6, "SD2": 10.9, "SDXL": 17.4}
CHECKPOINTED_SHARE = 0.3  # of the activations, with gradient checkpointing
CHECKPOINTED_TIME = 4 / 3  # the forward pass is computed twice

# A step is a forward pass and a backward pass through the activations; DreamBooth also has gradients of all weights,
# and its optimizer moves them all: 2.3 times as long on the tiny base
STEP_FORWARDS = {"hypernet": 2.0, "lora": 2.0, "embedding": 2.0, "dreambooth": 4.6}
# Share of a matrix product's speed that training reaches: measured on the tiny base on one core, 16.5 of 54 GFLOP/s
EFFICIENCY = 0.3
OPTIMIZER_COPIES = 4  # float32 copies of what is trained: weights, gradients, two moments of AdamW
EMBEDDING_VECTORS = 4  # the default of `velatura train embedding`
AESTHETIC_MINUTES = 0.5
MEASURED_SECONDS = 0.1


class Machine(NamedTuple):
    """Machine to train on.

    Attributes:
        device: "cpu", "cuda" or "mps".
        flops: Floating-point operations per second of a matrix product in the precision that the base computes in.
        memory: Bytes of the device's memory.
        value_bytes: Bytes of a number in the precision that the base computes in.
    """

    device: str
    flops: float
    memory: int
    value_bytes: int


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a training.

    Attributes:
        minutes: Duration.
        memory: Bytes of memory at the peak.
        file_bytes: Size of the overlay's file.
        needs_checkpointing: True if it fits into the machine's memory only with gradient checkpointing.
    """

    minutes: float
    memory: int
    file_bytes: int
    needs_checkpointing: bool = False


def advice_for(purpose: Purpose, family: str) -> Advice:
    """Return the kinds to train for a purpose on a family of bases."""
    by_family = CHOICES[purpose]
    return by_family.get(family, by_family[ANY_FAMILY])


def estimate_cost(kind: TrainedKind, purpose: Purpose, family: str, machine: Machine) -> Cost:
    """Estimate what the preset of a kind costs on a machine, without opening a base.

    Args:
        kind: The kind of overlay.
        purpose: "style" takes the preset for styles, the others that for subjects.
        family: "tiny", "SD1", "SD2" or "SDXL".
        machine: The machine.
    """
    if kind == "aesthetic":
        return Cost(AESTHETIC_MINUTES, _base_bytes(family, machine), TOKEN_WIDTH[family] * 4)
    plan = Plan.preset(kind, family, preset_purpose(purpose))
    pictures = plan.rates().end * plan.batch_size * plan.accumulation
    seconds = pictures * STEP_FORWARDS[kind] * FORWARD_FLOPS[family] / (machine.flops * EFFICIENCY)
    parameters = count_parameters(kind, family)
    fixed_bytes = _base_bytes(family, machine) + OPTIMIZER_COPIES * 4 * parameters
    activations = ACTIVATION_GIB[family] * 2**30 * plan.batch_size
    memory = fixed_bytes + round(activations)
    checkpointed = fixed_bytes + round(activations * CHECKPOINTED_SHARE)
    needs_checkpointing = memory > machine.memory and not plan.checkpointing
    return Cost(
        minutes=seconds * (CHECKPOINTED_TIME if needs_checkpointing else 1) / 60,
        memory=checkpointed if needs_checkpointing else memory,
        file_bytes=parameters * 4,
        needs_checkpointing=needs_checkpointing,
    )


def count_parameters(kind: TrainedKind, family: str) -> int:
    """Return how many numbers a kind trains with the defaults of its command."""
    if kind == "hypernet":  # 1,2,1: two linear layers, for K and V of every width
        return sum(2 * (4 * width**2 + 3 * width) for width in CONTEXT_WIDTHS[family])
    if kind == "lora":
        return LORA_PARAMETERS[family]
    return EMBEDDING_VECTORS * TOKEN_WIDTH[family] if kind == "embedding" else UNET_PARAMETERS[family]


def preset_purpose(purpose: Purpose) -> Literal["style", "subject"]:
    """Return the purpose of the preset that serves a purpose."""
    return "subject" if purpose in {"subject", "word"} else "style"


def measure_machine(family: str, device_name: str = "auto") -> Machine:
    """Measure a matrix product for a tenth of a second, and read the memory.

    Args:
        family: "tiny", "SD1", "SD2" or "SDXL": the tiny base computes in float32 on a CPU.
        device_name: "cpu", "cuda", "mps", or "auto" for the fastest of them.

    Raises:
        UnknownName: This machine does not have the device.
    """
    import time

    import torch

    from velatura.base.devices import find_device, find_dtype

    device = find_device("cpu" if family == TINY and device_name == "auto" else device_name)
    dtype = find_dtype("auto", device, UNET_PARAMETERS[family] * 4)
    side = 1024 if device.type == "cpu" else 4096
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    torch.mm(matrix, matrix).sum().item()  # not measured: the first product also chooses a kernel
    count, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < MEASURED_SECONDS:
        torch.mm(matrix, matrix).sum().item()  # .item() waits for a GPU
        count += 1
    return Machine(device.type, count * 2 * side**3 / seconds, _memory_bytes(device.type), dtype.itemsize)


def _memory_bytes(device: str) -> int:
    if device == "cuda":
        import torch

        cuda: Any = torch.cuda
        return int(cuda.get_device_properties(0).total_memory)
    import psutil

    return psutil.virtual_memory().total


def _base_bytes(family: str, machine: Machine) -> int:
    """Return the bytes of the frozen UNet."""
    return UNET_PARAMETERS[family] * machine.value_bytes
