import pytest

from velatura.errors import BadRecipe, UnknownName
from velatura.formats.checkpoints.write_single_file import checkpoint_contents
from velatura.merging.checkpoints.block_weights import UNetBlocks

UNET = "model.diffusion_model."
SD1 = [
    *(f"{UNET}input_blocks.{index}.0.weight" for index in range(12)),
    f"{UNET}middle_block.1.proj_in.weight",
    *(f"{UNET}output_blocks.{index}.0.weight" for index in range(12)),
]
ENDS = [f"{UNET}time_embed.0.weight", f"{UNET}out.2.weight"]
OTHERS = ["cond_stage_model.transformer.text_model.final_layer_norm.weight", "first_stage_model.quant_conv.weight"]


def blocks() -> UNetBlocks:
    return UNetBlocks.from_keys([*SD1, *ENDS, *OTHERS])


def read_strengths(weights: object) -> dict[str, float]:
    return {block.name: strength for block, strength in blocks().strengths(weights).items()}


def test_the_blocks_of_an_sd1_are_the_twenty_five_of_peoples_lists():
    listed = [*(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12))]
    assert blocks().names == listed
    assert [blocks().block_of(key).name for key in SD1] == listed


def test_ends_belong_to_the_first_and_last_block_and_all_else_to_none():
    assert [blocks().block_of(key).name for key in [*ENDS, *OTHERS]] == ["IN00", "OUT11", "BASE", "BASE"]


def test_averages_belong_where_their_twins_do():
    found = UNetBlocks.from_keys([*SD1, "model_ema.diffusion_modeloutput_blocks70weight"])
    assert found.block_by_key["model_ema.diffusion_modeloutput_blocks70weight"] == ("out", 7)


@pytest.mark.parametrize("separator", [",", ", ", "\n"])
def test_numbers_stand_in_order_with_or_without_the_base(separator):
    numbers = [index / 100 for index in range(25)]
    text = separator.join(map(str, numbers))
    without = dict(zip(blocks().names, numbers, strict=True))
    assert read_strengths(text) == read_strengths(numbers) == without
    assert read_strengths(f"0.9{separator}{text}") == {"BASE": 0.9, **without}


def test_blocks_are_named_alone_in_ranges_and_by_side():
    found = read_strengths("IN=0.2, in04-IN06=0.6, M00=1, BASE=0, OUT11=0.5")
    assert found == {
        **{f"IN{i:02}": 0.6 if 4 <= i <= 6 else 0.2 for i in range(12)},
        "M00": 1,
        "BASE": 0,
        "OUT11": 0.5,
    }
    assert read_strengths({"M00": 0.3}) == read_strengths("MID=0.3") == {"M00": 0.3}


@pytest.mark.parametrize("wrong", ["0.5", "0.1,0.2", [0.5] * 24])
def test_another_count_of_numbers_is_refused_with_what_there_is(wrong):
    with pytest.raises(BadRecipe, match="give 25 for IN00 to OUT11, or 26 with BASE first"):
        blocks().strengths(wrong)


def test_what_is_no_number_or_no_block_is_refused():
    with pytest.raises(BadRecipe, match="'strong' is not the strength"):
        blocks().strengths("M00=strong")
    for name in ("IN12", "OUT00-IN03", "MIDDLE"):
        with pytest.raises(UnknownName, match="no block of this UNet"):
            blocks().strengths(f"{name}=1")
    with pytest.raises(BadRecipe, match="has no UNet"):
        UNetBlocks.from_keys(OTHERS).strengths([0.5])


def test_every_tensor_of_a_real_unet_is_in_a_block(tiny):
    keys = checkpoint_contents(tiny).tensors.keys()
    found = UNetBlocks.from_keys(keys)
    assert {key for key in keys if key not in found.block_by_key} == {key for key in keys if not key.startswith(UNET)}
