"""What diffusers' users have asked for: a hypernetwork over their own pipeline, in any of its forms.

The oracle is the definition itself: hooks of this test's own that run both networks before every to_k and to_v.
"""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from PIL import Image
from torch import nn
from transformers import CLIPTextModelWithProjection

import velatura
from velatura.overlays.attention_layers import attention_layers

STRENGTH = 0.7
PICTURE = Image.new("RGB", (64, 64), "teal")


@pytest.fixture
def parts():
    """The parts of a pipeline, which a test may change."""
    base = velatura.tiny()
    return {
        "unet": base.unet,
        "vae": base.vae,
        "text_encoder": base.text.model,
        "tokenizer": base.text.tokenizer,
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture(params=["linear", "relu"])
def overlay(request, hyper):
    made = hyper(activation=request.param)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def painted(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": "a red house", "num_inference_steps": 2, "output_type": "latent", **options}
    return pipeline(generator=torch.Generator().manual_seed(0), **given).images


@contextmanager
def by_definition(unet, overlay):
    def before(part, arguments):
        [context] = arguments
        network = overlay.get_submodule(f"{context.shape[-1]}_{part}.linear")
        return (context + STRENGTH * network(context),)

    with ExitStack() as undos:
        for _, layer in attention_layers(unet):
            for part, name in enumerate(("to_k", "to_v")):
                if f"{layer.get_submodule(name).in_features}_0" in dict(overlay.named_children()):
                    hook = layer.get_submodule(name).register_forward_pre_hook(
                        lambda _layer, arguments, part=part: before(part, arguments)
                    )
                    undos.callback(hook.remove)
        yield


def check(pipeline, overlay, **options):
    off = painted(pipeline, **options)
    with by_definition(pipeline.unet, overlay):
        expected = painted(pipeline, **options)
    with velatura.attach(pipeline, overlay, STRENGTH) as attachment:
        torch.testing.assert_close(painted(pipeline, **options), expected, rtol=1e-4, atol=1e-4)
        attachment.strength = 0
        assert torch.equal(painted(pipeline, **options), off)
    assert torch.equal(painted(pipeline, **options), off)
    assert (expected - off).abs().max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_text_to_image(parts, overlay, guidance):
    check(StableDiffusionPipeline(**parts), overlay, guidance_scale=guidance, height=64, width=64)


def test_image_to_image(parts, overlay):
    check(StableDiffusionImg2ImgPipeline(**parts), overlay, image=PICTURE, num_inference_steps=4)


def test_inpainting(parts, overlay):
    mask = Image.new("L", (64, 64), 255)
    check(StableDiffusionInpaintPipeline(**parts), overlay, image=PICTURE, mask_image=mask, num_inference_steps=4)


def test_with_a_controlnet(parts, overlay):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(16, 32, 96))
    pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet)
    check(pipeline, overlay, image=PICTURE, height=64, width=64)


@pytest.mark.parametrize(
    "processor", [AttnProcessor(), SlicedAttnProcessor(slice_size=1)], ids=lambda processor: type(processor).__name__
)
def test_any_attention_processor(parts, overlay, processor):
    parts["unet"].set_attn_processor(processor)
    check(StableDiffusionPipeline(**parts), overlay, height=64, width=64)


def test_attention_slicing(parts, overlay):
    pipeline = StableDiffusionPipeline(**parts)
    pipeline.enable_attention_slicing()
    check(pipeline, overlay, height=64, width=64)


def test_with_an_ip_adapter(parts, overlay):
    """Its own pairs of K and V stand beside to_k and to_v, and read pictures: they stay as they are."""
    unet = parts["unet"]
    torch.manual_seed(0)
    width = 24
    projection = {"proj.weight": torch.randn(4 * 96, width) * 0.1, "proj.bias": torch.zeros(4 * 96)}
    projection |= {"norm.weight": torch.ones(96), "norm.bias": torch.zeros(96)}
    crossing = [layer for _, layer in attention_layers(unet) if layer.is_cross_attention]
    adapters = {
        f"{2 * i + 1}.to_{part}_ip.weight": torch.randn_like(layer.to_k.weight) * 0.05
        for i, layer in enumerate(crossing)
        for part in "kv"
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapters}])
    pipeline = StableDiffusionPipeline(**parts)
    pipeline.set_ip_adapter_scale(0.8)
    seen = torch.randn(2, 1, width)
    check(pipeline, overlay, ip_adapter_image_embeds=[seen], height=64, width=64)


def test_sdxl(hyper, parts):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 96,
    ).requires_grad_(False)
    words = velatura.tiny().text
    config = words.model.config
    config.projection_dim = 96
    second = CLIPTextModelWithProjection(config).float()
    vae = AutoencoderKL(block_out_channels=(16, 16, 16), norm_num_groups=8, latent_channels=4)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=words.model,
        text_encoder_2=second,
        tokenizer=words.tokenizer,
        tokenizer_2=words.tokenizer,
        unet=unet,
        scheduler=parts["scheduler"],
    )
    overlay = velatura.Hypernetwork(
        velatura.Card(kind="hypernet", structure={"widths": [64, 192], "layers": [1, 2, 1], "activation": "relu"})
    )
    for weight in overlay.parameters():
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    check(pipeline, overlay, height=64, width=64)


@pytest.mark.slow  # tests/laws/test_compile.py compiles the tiny base every time
@pytest.mark.parametrize("overlay", ["linear", "relu"], indirect=True)
def test_a_compiled_unet_of_a_pipeline(parts, overlay):
    torch._dynamo.reset()
    pipeline = StableDiffusionPipeline(**parts)
    plain = pipeline.unet
    pipeline.unet = torch.compile(plain, backend="eager")
    context = torch.randn(2, 77, 96)
    latents = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        off = pipeline.unet(latents, 5, context).sample
        with velatura.attach(pipeline, overlay, STRENGTH):
            torch.testing.assert_close(
                pipeline.unet(latents, 5, context).sample, plain(latents, 5, context).sample, rtol=1e-4, atol=1e-4
            )
            assert not torch.equal(plain(latents, 5, context).sample, off)
        assert torch.equal(pipeline.unet(latents, 5, context).sample, off)
    torch._dynamo.reset()


class Wrapped(nn.Module):
    """A projection as peft wraps it when a LoRA is loaded."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.in_features = base_layer, base_layer.in_features
        torch.manual_seed(0)
        self.delta = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)

    def forward(self, context):
        return self.base_layer(context) + 0.1 * self.delta(context)


def test_a_lora_loaded_later_reads_what_the_hypernetwork_makes(parts, overlay):
    unet = parts["unet"]
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 96)
    with torch.no_grad(), velatura.attach(unet, overlay, STRENGTH):
        unet(latents, torch.tensor(5), context)
        for _, layer in attention_layers(unet):
            layer.to_k, layer.to_v = Wrapped(layer.to_k), Wrapped(layer.to_v)
        prediction = unet(latents, torch.tensor(5), context).sample
    with torch.no_grad(), by_definition(unet, overlay):
        torch.testing.assert_close(unet(latents, torch.tensor(5), context).sample, prediction, rtol=1e-4, atol=1e-4)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in unet.modules())
