import torch

from velatura.sampling.prompt_to_prompt import AttentionReplacement, map_tokens, replace_attention


def test_tokens_take_the_places_of_those_they_replace():
    assert map_tokens([1, 2, 3, 9], [1, 5, 3, 9]).tolist() == [0, 1, 2, 3]


def test_a_token_that_was_added_has_no_place_in_the_source():
    assert map_tokens([1, 7, 3, 9], [1, 3, 9]).tolist() == [0, -1, 1, 2]


def outputs(unet, context):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(len(context), 1, 1, 1)
    with torch.no_grad():
        return unet(latents, torch.tensor(500), context, return_dict=False)[0]


def two_prompts(parts):
    return torch.randn(2 * parts, 77, 96, generator=torch.Generator().manual_seed(1))


def test_a_picture_takes_the_layout_of_its_source_and_the_source_stays_itself(tiny):
    context = two_prompts(parts=2)
    plain = outputs(tiny.unet, context)
    with replace_attention(tiny.unet, AttentionReplacement([torch.arange(77)]), parts=2):
        replaced = outputs(tiny.unet, context)
    torch.testing.assert_close(replaced[1::2], plain[1::2], rtol=0, atol=1e-5)  # sources
    assert (replaced[::2] - plain[::2]).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(outputs(tiny.unet, context), plain)


def test_the_same_prompt_holds_its_own_layout(tiny):
    context = two_prompts(parts=1)[:1].repeat(2, 1, 1)
    plain = outputs(tiny.unet, context)
    with replace_attention(tiny.unet, AttentionReplacement([torch.arange(77)]), parts=1):
        torch.testing.assert_close(outputs(tiny.unet, context), plain, rtol=0, atol=1e-5)


def test_nothing_is_held_once_it_is_let_go(tiny):
    context, replacement = two_prompts(parts=1), AttentionReplacement([torch.arange(77)], until_fraction=0.5)
    plain = outputs(tiny.unet, context)
    replacement.start_step(0.5)
    with replace_attention(tiny.unet, replacement, parts=1):
        assert torch.equal(outputs(tiny.unet, context), plain)
