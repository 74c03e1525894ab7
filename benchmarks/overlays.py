"""What `make bench` prints of hypernetworks: a step with one, as a multiple of a step without, and the floor of that.

All ways are measured in turns in one run, so that a slow moment of the machine strikes all of them: what counts is the
ratio. The floor is the ratio of floating-point operations, with all that is computed once left out.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import velatura
from velatura.overlays.attention_layers import attention_layers, context_width

ROUNDS = 7
STRENGTH = 0.8
STEPS = 20

Step = Callable[[], object]
AttachMethod = Callable[[], AbstractContextManager[object]]


def sd15_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet with random weights."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )


def network(
    unet: nn.Module, dtype: torch.dtype, activation: str, *, only_cross_attention: bool = False
) -> velatura.Hypernetwork:
    """A hypernetwork 1,2,1 with weights that show, for all widths or for that of cross-attention only."""
    layers = [layer for _, layer in attention_layers(unet) if layer.is_cross_attention or not only_cross_attention]
    structure = {
        "widths": list(dict.fromkeys(map(context_width, layers))),
        "layers": [1, 2, 1],
        "activation": activation,
    }
    overlay = velatura.Hypernetwork(velatura.Card(kind="hypernet", structure=structure))
    overlay.initialise(torch.Generator().manual_seed(1))
    return overlay.to(dtype)


@contextmanager
def straightforward(unet: nn.Module, overlay: velatura.Hypernetwork) -> Iterator[None]:
    """The networks before every to_k and to_v at every step, as A1111 runs them."""

    def add_change(part: int, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        [context] = arguments
        change: Tensor = overlay.get_submodule(f"{context.shape[-1]}_{part}.linear")(context)
        return (context + change * STRENGTH,)

    with ExitStack() as undos:
        for _, layer in attention_layers(unet):
            if context_width(layer) in overlay.structure.widths:
                for part, name in enumerate(("to_k", "to_v")):
                    hook = layer.get_submodule(name).register_forward_pre_hook(_bind_part(add_change, part))
                    undos.callback(hook.remove)
        yield


def _bind_part(hook: Callable[..., object], part: int) -> Callable[..., object]:
    return lambda *arguments: hook(part, *arguments)


def flops(unet: UNet2DConditionModel, pixels: int, net: velatura.Hypernetwork | None = None) -> int:
    """How many floating-point operations a step takes, with a network the straightforward way if one is given.

    Counted on the meta device, with attention written out as products, since fused ones are not counted.
    """
    with torch.device("meta"):
        shape = UNet2DConditionModel.from_config(unet.config)
        shape.set_attn_processor(AttnProcessor())
        latents, context = torch.empty(1, 4, pixels, pixels), torch.empty(1, 77, unet.config["cross_attention_dim"])
    attached = nullcontext() if net is None else straightforward(shape, net.to("meta"))
    with attached, FlopCounterMode(display=False) as counter:
        shape(latents, torch.tensor(500), context)
    return counter.get_total_flops()


def measure_seconds(step: Step, methods: dict[str, AttachMethod]) -> dict[str, list[float]]:
    """Seconds of a step in each way, in turns; a step before it prepares what is computed once and kept."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            with method():
                step()
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    return seconds


@torch.no_grad()
def table(name: str, unet: UNet2DConditionModel, pixels: int, dtype: torch.dtype) -> None:
    """Print the rows of one UNet in one precision."""
    unet = unet.to(dtype).eval().requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, pixels, pixels, generator=generator).to(dtype)
    latents = latents.contiguous(memory_format=torch.channels_last)
    context = torch.randn(1, 77, unet.config["cross_attention_dim"], generator=generator).to(dtype)

    def step() -> object:
        return unet(latents, torch.tensor(500), context, return_dict=False)

    nets = {
        "1,2,1 relu": network(unet, dtype, "relu"),
        "1,2,1 linear": network(unet, dtype, "linear"),
        "1,2,1 relu, cross-attention only": network(unet, dtype, "relu", only_cross_attention=True),
    }
    methods: dict[str, AttachMethod] = {"no overlay": nullcontext}
    floors = {"no overlay": 1.0}
    bare_flops = flops(unet, pixels)
    for label, net in nets.items():
        floors[f"{label}, straightforward"] = flops(unet, pixels, deepcopy(net)) / bare_flops
        methods[f"{label}, straightforward"] = lambda net=net: straightforward(unet, net)
        methods[f"{label}, velatura"] = lambda net=net: velatura.attach(unet, net, STRENGTH)
        floors[f"{label}, velatura"] = (
            floor_flops(unet, pixels, net) / bare_flops if net.structure.activation != "linear" else 1.0
        )
    seconds = measure_seconds(step, methods)
    print(f"\n{name}, {str(dtype).removeprefix('torch.')}, {bare_flops / 1e9:.1f} GFLOP a step")
    print(f"{'':48}{'s/step':>8}{'ratio':>8}{'floor':>8}")
    for label, times in seconds.items():
        ratio = min(times) / min(seconds["no overlay"])  # whatever else the machine does only adds to a time
        print(f"{label:48}{min(times):8.3f}{ratio:8.3f}{floors[label]:8.3f}")


def floor_flops(unet: UNet2DConditionModel, pixels: int, net: velatura.Hypernetwork) -> int:
    """The least that a non-linear network can cost: the prompt's part is computed once for all steps."""
    cross_attention_widths = {context_width(layer) for _, layer in attention_layers(unet) if layer.is_cross_attention}
    other_widths = tuple(width for width in net.structure.widths if width not in cross_attention_widths)
    if not other_widths:
        return flops(unet, pixels)
    other_network = network(unet, torch.float32, net.structure.activation)
    other_network.structure = other_network.structure.model_copy(update={"widths": other_widths})
    return flops(unet, pixels, other_network)


def evaluations() -> int:
    """How often a context network is evaluated in a generation of 20 steps."""
    base = velatura.tiny()
    net = network(base.unet, torch.float32, "relu")
    with velatura.attach(base, net, STRENGTH) as attachment:
        velatura.generate(base, "a red house on the beach", steps=STEPS, seed=7)
        return attachment.effect.evaluations


def main() -> None:
    """Print the tables of the tiny base and of an SD1.5 UNet."""
    print(f"evaluations of the context network in {STEPS} steps: {evaluations()}", flush=True)
    for dtype in (torch.bfloat16, torch.float32):
        table("tiny base at 64 px", velatura.tiny().unet, 16, dtype)
    if "--tiny" not in sys.argv:
        for dtype in (torch.bfloat16, torch.float32):
            table("SD1.5's UNet, random weights, at 512 px, batch 1", sd15_unet(), 64, dtype)


if __name__ == "__main__":
    main()
