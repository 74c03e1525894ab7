import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from velatura.base.conditioning import Conditioning, MicroConditioning
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadRecipe, UnsupportedBase

WORDS = ["a red house", "two boats at night, oil painting"]


@pytest.fixture
def pipeline(xl):
    one, other = xl.text.encoders
    return StableDiffusionXLPipeline(
        vae=xl.vae,
        text_encoder=one.model,
        text_encoder_2=other.model,
        tokenizer=one.tokenizer,
        tokenizer_2=other.tokenizer,
        unet=xl.unet,
        scheduler=EulerDiscreteScheduler(),
    )


@torch.no_grad()
def test_two_text_encoders_give_the_same_as_in_diffusers(xl, pipeline):
    ours = xl.text.conditioning(WORDS)
    context, _, pooled, _ = pipeline.encode_prompt(WORDS, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours.context, context)
    torch.testing.assert_close(ours.pooled, pooled)
    assert ours.context.shape == (2, 77, xl.text.width)


@torch.no_grad()
def test_an_sdxl_reads_sizes_and_pooled_prompts_as_in_diffusers(xl, pipeline):
    latents, cond = torch.randn(2, 4, 8, 12), xl.text.conditioning(WORDS)
    ids = pipeline._get_add_time_ids(
        (64, 96), (0, 0), (64, 96), dtype=torch.float32, text_encoder_projection_dim=cond.pooled.shape[1]
    )
    added_cond = {"text_embeds": cond.pooled, "time_ids": ids.repeat(2, 1)}
    theirs = xl.unet(latents, torch.tensor(300), cond.context, added_cond_kwargs=added_cond).sample
    torch.testing.assert_close(xl.predict(latents, torch.tensor(300), cond), theirs)
    cropped = xl.predict(
        latents, torch.tensor(300), cond, MicroConditioning((512, 768), (64, 96), crop_top_left=(0, 32))
    )
    assert not torch.allclose(cropped, theirs)


def test_time_ids_are_in_the_papers_order():
    # Podell et al., algorithm 1: the original size, the crop's top and left, the target size
    assert MicroConditioning((512, 768), (256, 384), crop_top_left=(1, 2)).time_ids == (512, 768, 1, 2, 256, 384)


def test_an_sdxl_refuses_a_context_alone(xl):
    with pytest.raises(
        UnsupportedBase, match=r"pooled vector of each prompt.*pass the result of base\.text\.conditioning"
    ):
        xl.predict(torch.randn(1, 4, 8, 8), torch.tensor(3), xl.text.encode(["a tree"]))


@pytest.fixture(scope="module")
def deep(tiny):
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
    config.vocab_size = len(tiny.text.tokenizer)
    encoder = CLIPTextModel(config)
    return TextEncoder([ClipTextEncoder(tiny.text.tokenizer, encoder.eval())])


@torch.no_grad()
def test_a_clip_skip_reads_an_earlier_layer_and_its_norm(deep):
    [encoder] = deep.encoders
    ids = torch.tensor([encoder.pad_to_77(deep.token_ids(WORDS[0]))])
    layers = encoder.model(ids, output_hidden_states=True).hidden_states  # of the embedding, and after each layer
    for skip in (1, 2, 4):
        cond = deep.conditioning(WORDS[:1], skip).context
        torch.testing.assert_close(cond, encoder.model.final_layer_norm(layers[5 - skip]))
    assert torch.equal(deep.conditioning(WORDS, 1).context, deep.encode(WORDS))


def test_a_clip_skip_past_the_first_layer_is_refused(deep):
    with pytest.raises(BadRecipe, match="clip_skip is 5: this base takes 1"):
        deep.conditioning(WORDS, 5)


@torch.no_grad()
def test_a_clip_skip_leaves_an_sdxl_as_it_is(xl):
    # A1111 1.8 ignores it there: the layers are the ones the base was trained with
    assert torch.equal(xl.text.conditioning(WORDS, 2).context, xl.text.encode(WORDS))


def test_a_copy_has_its_own_models(xl):
    copied = xl.text.deep_copy()
    assert all(ours.model is not theirs.model for ours, theirs in zip(copied.encoders, xl.text.encoders, strict=True))
    assert torch.equal(copied.encode(WORDS), xl.text.encode(WORDS))


def test_conditioning_that_is_already_there_is_not_copied(xl):
    cond = Conditioning(torch.ones(1, 2, 3), torch.ones(1, 4))
    moved = cond.to(torch.device("cpu"), torch.float32)
    assert moved.context is cond.context
    assert moved.pooled is cond.pooled
