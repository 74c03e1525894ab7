import pytest
import torch
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.formats.checkpoints.states import same
from velatura.formats.checkpoints.ldm_text import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    clip_from_ldm,
    clip_to_ldm,
    open_clip_from_ldm,
    open_clip_to_ldm,
)
from velatura.formats.checkpoints.tensor_sources import apply_sources

CONFIG = CLIPTextConfig(
    vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, projection_dim=8
)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn_like(tensor) for key, tensor in CLIPTextModel(CONFIG).state_dict().items()}


def taken(read, tensors, **options):
    return apply_sources(read(tensors, **options), tensors)


def in_their_words(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the level that transformers 5 took out and diffusers' conversion still writes."""
    return {f"text_model.{key}": tensor for key, tensor in state.items()}


def test_clip_comes_back(state):
    written = clip_to_ldm(state)
    assert f"{CLIP_PREFIX}text_model.encoder.layers.0.self_attn.q_proj.weight" in written
    assert same(taken(clip_from_ldm, written), state)


def test_diffusers_reads_our_clip_names_back(state):
    assert same(single_file_utils.convert_ldm_clip_checkpoint(clip_to_ldm(state)), in_their_words(state))


def test_position_ids_of_old_files_are_left_out(state):
    old = {**clip_to_ldm(state), f"{CLIP_PREFIX}text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert same(taken(clip_from_ldm, old), state)


def test_very_old_files_lack_a_level(state):
    old = {f"{CLIP_PREFIX}{key}": tensor for key, tensor in state.items()}
    assert same(taken(clip_from_ldm, old), state)


def test_open_clip_comes_back(state):
    assert same(taken(open_clip_from_ldm, open_clip_to_ldm(state)), state)


def test_what_no_text_encoder_uses_is_left_out(state):
    more = {f"{OPEN_CLIP_PREFIX}{key}": torch.zeros(8, 8) for key in ("text_projection", "logit_scale", "attn_mask")}
    assert same(taken(open_clip_from_ldm, open_clip_to_ldm(state) | more), state)


def test_diffusers_reads_our_open_clip_names_back(state):
    model = CLIPTextModel(CONFIG)
    converted = single_file_utils.convert_open_clip_checkpoint(model, open_clip_to_ldm(state), OPEN_CLIP_PREFIX)
    assert same(converted, in_their_words(state))


def test_the_projection_of_open_clip_is_transposed():
    state = CLIPTextModelWithProjection(CONFIG).state_dict()
    state["text_projection.weight"] = torch.arange(64.0).view(8, 8)
    written = open_clip_to_ldm(state)
    assert torch.equal(written[f"{OPEN_CLIP_PREFIX}text_projection"], state["text_projection.weight"].T)
    assert same(taken(open_clip_from_ldm, written, has_projection=True), state)


def test_unused_layers_are_copies_when_written_and_dropped_when_read(state):
    written = open_clip_to_ldm(state, layers=4)
    ends = [f"{OPEN_CLIP_PREFIX}transformer.resblocks.{index}.ln_1.weight" for index in (2, 3)]
    assert torch.equal(*(written[end] for end in ends))
    assert same(taken(open_clip_from_ldm, written, layers=3), state)
