"""Checkpoints as people have them: of torch, old, averaged, without parts, with more than a base has, damaged."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import velatura
from tests.formats.checkpoints.states import same
from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadFile, UnsupportedBase, VelaturaWarning
from velatura.formats.checkpoints import prediction, single_file
from velatura.formats.checkpoints.ema import find_ema_keys, has_only_ema
from velatura.tensors import Contents, open_tensors, write_safetensors

NAMES = Path(__file__).parents[2] / "data" / "names"
HOSTILE = Path(__file__).parents[2] / "data" / "hostile" / "checkpoint"
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def tensors(file):
    return dict(open_tensors(file).tensors)


@pytest.fixture(scope="module")
def metadata(file):
    return dict(open_tensors(file).metadata)


def read(tensors, metadata, **options):
    return single_file.read(Contents(Path("one.safetensors"), tensors, metadata), **options)


def ema_name(key):
    """As LDM's LitEma calls what it averages: the parameter's name without its dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def with_averages(tensors):
    mean = {ema_name(key): tensor + 1 for key, tensor in tensors.items() if key.startswith(UNET)}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return tensors | mean | counters


def test_ema_weights_are_ignored_by_default(tensors, metadata, tiny):
    assert same(read(with_averages(tensors), metadata).unet.state_dict(), tiny.unet.state_dict())


def test_ema_weights_are_read_when_asked_for(tensors, metadata, tiny):
    expected = {key: tensor + 1 for key, tensor in tiny.unet.state_dict().items()}
    assert same(read(with_averages(tensors), metadata, weights="ema").unet.state_dict(), expected)


def test_missing_ema_weights_are_refused(tensors, metadata):
    with pytest.raises(BadFile, match="no averaged weights"):
        read(tensors, metadata, weights="ema")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_names_of_ema_weights_are_recognised_without_their_dots(family):
    rows = [line.split() for line in (NAMES / f"{family}.txt").read_text().splitlines()]
    keys = {f"{UNET}{theirs}.{kind}" for _, theirs, _ in rows for kind in ("weight", "bias")}
    only = [ema_name(key) for key in keys]
    assert has_only_ema(only)
    assert find_ema_keys("file", only) == {key: ema_name(key) for key in keys}


def test_very_old_names_of_clip_are_read(tensors, metadata, tiny):
    old = {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in tensors.items()}
    assert old.keys() != tensors.keys()
    assert same(read(old, metadata).text.model.state_dict(), tiny.text.model.state_dict())


def test_leftovers_of_training_are_ignored_without_a_warning(tensors, metadata, tiny):
    left = {
        **{key: torch.ones(1000) for key in ("betas", "sqrt_one_minus_alphas_cumprod", "logvar")},
        "alphas_cumprod": NoiseSchedule().alphas_cumprod.half(),
        "posterior_mean_coef1": torch.ones(1000),
        "loss.perceptual_loss.net.slice1.0.weight": torch.ones(2),
        "scale_factor": torch.tensor(0.18215),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77.0).half()[None],
        "cond_stage_model.transformer.text_projection.weight": torch.ones(2, 2),
        "cond_stage_model.logit_scale": torch.tensor(4.0),
    }
    assert same(read(tensors | left, metadata).text.model.state_dict(), tiny.text.model.state_dict())


def test_tensors_of_no_part_are_named_in_a_warning(tensors, metadata):
    with pytest.warns(VelaturaWarning, match="2 tensors .*'adapter.x', 'lora.y'"):
        read(tensors | {"adapter.x": torch.ones(1), "lora.y": torch.ones(1)}, metadata)


def test_a_missing_part_is_named(tensors, metadata):
    for prefix, message in (("first_stage_model.", "no autoencoder"), ("cond_stage_model.", "no text encoder")):
        with pytest.raises((BadFile, UnsupportedBase), match=message):
            read({key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}, metadata)


def test_broken_weights_are_refused(tensors, metadata):
    key = f"{UNET}time_embed.0.bias"
    with pytest.raises(BadFile, match=r"time_embed\.0\.bias with values that are not finite"):
        read(tensors | {key: torch.full_like(tensors[key], float("nan"))}, metadata)
    with pytest.raises(BadFile, match=r"time_embedding\.linear_1\.bias in torch\.int64"):
        read(tensors | {key: tensors[key].long()}, metadata)


@pytest.mark.parametrize(("channels", "what"), [(5, "depth"), (7, "upscaling"), (16, "another purpose")])
def test_models_for_another_purpose_are_refused_by_name(tensors, metadata, channels, what):
    with pytest.raises(UnsupportedBase, match=f"is a model for {what}"):
        read(tensors | {f"{UNET}input_blocks.0.0.weight": torch.zeros(64, channels, 3, 3)}, metadata)


@pytest.mark.parametrize(
    ("key", "what"),
    [  # the keys by which ComfyUI tells these models from a plain SDXL
        ("edm_mean", "an EDM model such as Playground"),
        ("edm_std", "an EDM model such as Playground"),
        ("edm_vpred.sigma_max", "an EDM model that predicts velocity"),
        ("edm_vpred.sigma_min", "an EDM model that predicts velocity"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        ("cc_projection.weight", "a Zero123"),
    ],
)
def test_models_that_need_more_than_a_plain_unet_are_refused_by_name(tensors, metadata, key, what):
    with pytest.raises(UnsupportedBase, match=what):
        read(tensors | {key: torch.ones(1)}, metadata)


@pytest.mark.parametrize(
    ("key", "what"),
    [("joint_blocks.0.x", "a Stable Diffusion 3"), ("double_blocks.0.img", "a Flux"), ("double_layers.0", "AuraFlow")],
)
def test_models_of_other_programs_are_refused_by_name(tensors, key, what):
    with pytest.raises(UnsupportedBase, match=what):
        read(tensors | {UNET + key: torch.zeros(1)}, {})


@pytest.mark.parametrize(("shift", "expected"), [(-2.0, "v_prediction"), (0.0, "epsilon")])
def test_the_prediction_of_an_sd2_is_found_by_a_trial_step(shift, expected):
    """Facts of A1111: a velocity's mean lies more than 1 below what was given, at the noisiest step."""

    class ShiftUNet(torch.nn.Module):
        device, dtype, config = torch.device("cpu"), torch.float32, {"cross_attention_dim": 4, "in_channels": 4}

        def forward(self, latents, timestep, *_, **__):
            assert timestep == 999
            return (latents + shift,)

    assert prediction.detect_prediction(ShiftUNet()) == expected


def changed_vae(tensors):
    return {key: tensor + 1 for key, tensor in tensors.items() if key.startswith("first_stage_model.")}


def vae_files(tensors, tmp_path):
    """The same autoencoder in every form it goes round in."""
    changed = changed_vae(tensors)
    bare = {key.removeprefix("first_stage_model."): tensor for key, tensor in changed.items()}
    write_safetensors(tmp_path / "prefixed.safetensors", changed)
    write_safetensors(tmp_path / "bare.safetensors", bare)
    torch.save({"state_dict": bare | {"loss.logvar": torch.ones(1)}, "epoch": 3}, tmp_path / "bare.vae.pt")
    return [tmp_path / name for name in ("prefixed.safetensors", "bare.safetensors", "bare.vae.pt")]


def test_the_autoencoder_of_another_file_replaces_the_own_one(tensors, file, tiny, tmp_path):
    expected = {key: tensor + 1 for key, tensor in tiny.vae.state_dict().items()}
    write_safetensors(tmp_path / "diffusers.safetensors", expected)
    for path in [*vae_files(tensors, tmp_path), tmp_path / "diffusers.safetensors"]:
        base = velatura.open_base(file, vae=path, dtype="float32", device="cpu")
        assert same(base.vae.state_dict(), expected), path
        assert same(base.unet.state_dict(), tiny.unet.state_dict())


@pytest.mark.parametrize("ending", [".vae.safetensors", ".vae.pt"])
def test_an_autoencoder_beside_a_checkpoint_is_used_as_in_a1111(tensors, metadata, tiny, tmp_path, ending):
    write_safetensors(tmp_path / "mine.safetensors", tensors, metadata)
    changed = changed_vae(tensors)
    if ending.endswith("pt"):
        torch.save(changed, tmp_path / f"mine{ending}")
    else:
        write_safetensors(tmp_path / f"mine{ending}", changed)
    own = velatura.open_base(tmp_path / "mine.safetensors", dtype="float32", device="cpu").vae.state_dict()
    assert same(own, {key: tensor + 1 for key, tensor in tiny.vae.state_dict().items()})
    chosen = velatura.open_base(
        tmp_path / "mine.safetensors", vae=tmp_path / "mine.safetensors", dtype="float32", device="cpu"
    )
    assert same(chosen.vae.state_dict(), tiny.vae.state_dict())


# What programs call the projections of the VAE's attention, by LDM's names: diffusers today, diffusers before 0.17
def test_a_diffusers_folder_gives_its_autoencoder(file, tiny, tmp_path):
    velatura.save(tiny, tmp_path / "folder")
    for folder in (tmp_path / "folder", tmp_path / "folder" / "vae"):
        assert same(velatura.open_base(file, vae=folder, device="cpu").vae.state_dict(), tiny.vae.state_dict())


def test_a_file_without_an_autoencoder_is_refused(file, tmp_path):
    write_safetensors(tmp_path / "none.safetensors", {"a": torch.ones(1)})
    with pytest.raises(BadFile, match=r"none\.safetensors holds no autoencoder"):
        velatura.open_base(file, vae=tmp_path / "none.safetensors")


def test_a_checkpoint_without_an_autoencoder_opens_with_another(tensors, metadata, tiny, tmp_path, file):
    less = {key: tensor for key, tensor in tensors.items() if not key.startswith("first_stage_model.")}
    write_safetensors(tmp_path / "less.safetensors", less, metadata)
    base = velatura.open_base(tmp_path / "less.safetensors", vae=file, dtype="float32", device="cpu")
    assert same(base.vae.state_dict(), tiny.vae.state_dict())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1.0", "1e300"])
def test_numbers_out_of_range_in_our_own_settings_are_refused(tensors, metadata, number):
    settings = json.loads(metadata["velatura.base"])
    text = json.dumps(settings | {"vae": {"scaling_factor": "NUMBER"}}).replace('"NUMBER"', number)
    with pytest.raises(BadFile, match="scaling_factor of its vae"):
        read(tensors, metadata | {"velatura.base": text})


@pytest.mark.parametrize("count", [20, 10**5])
def test_names_of_too_many_levels_are_refused(tensors, metadata, count):
    deep = {f"{UNET}input_blocks.{index}.0.op.weight": torch.zeros(1) for index in range(1, count)}
    with pytest.raises(BadFile, match="is not a Stable Diffusion's"):
        read({key: tensor for key, tensor in tensors.items() if not key.startswith(UNET)} | deep, metadata)


@pytest.mark.parametrize("name", sorted(path.name for path in HOSTILE.glob("*.safetensors")))
def test_hostile_checkpoints_are_refused_in_one_line(name):
    with pytest.raises((BadFile, UnsupportedBase)) as caught:
        velatura.open_base(HOSTILE / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(file, tmp_path, kept):
    whole = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(BadFile, match=r"cut\.safetensors"):
        velatura.open_base(tmp_path / "cut.safetensors")


def test_a_header_of_a_hundred_megabytes_is_refused_unread(tmp_path):
    path = tmp_path / "long.safetensors"
    with path.open("wb") as sparse:
        sparse.write((10**8 + 1).to_bytes(8, "little") + b"{")
        sparse.truncate(2 * 10**8)
    with pytest.raises(BadFile, match="header whose length is impossible"):
        velatura.open_base(path)


def test_an_overlay_is_not_opened_as_a_base(tiny, tmp_path):
    velatura.save(velatura.Hypernetwork.for_base(tiny), tmp_path / "hyper.safetensors")
    with pytest.raises(BadFile, match="not a Stable Diffusion checkpoint"):
        velatura.open_base(tmp_path / "hyper.safetensors")


def test_a_dialect_for_a_base_and_a_precision_for_an_overlay_are_refused(tiny, tmp_path):
    with pytest.raises(velatura.VelaturaError, match="no dialect such as 'a1111'"):
        velatura.save(tiny, tmp_path / "a.safetensors", dialect="a1111")
    with pytest.raises(velatura.VelaturaError, match="only bases"):
        velatura.save(velatura.Hypernetwork.for_base(tiny), tmp_path / "a.pt", dtype="float16")
    with pytest.raises(velatura.VelaturaError, match=r"'\.ckpt'"):
        velatura.save(tiny, tmp_path / "a.ckpt")


def test_velocity_prediction_is_marked_in_the_file(tiny, tmp_path):
    base = velatura.open_base(_written(replace_prediction(tiny), tmp_path / "v.safetensors"))
    assert base.family.prediction == "v_prediction"
    assert "v_pred" in open_tensors(tmp_path / "v.safetensors").tensors


def replace_prediction(tiny):
    parts = {"unet": tiny.unet, "vae": tiny.vae, "text": tiny.text, "schedule": tiny.schedule}
    return velatura.Base("v", replace(tiny.family, prediction="v_prediction"), **parts)


def _written(base, path):
    velatura.save(base, path)
    return path


@pytest.mark.parametrize(("stated", "warned"), [('"v"', True), ("eps", False)])
def test_a_yaml_beside_a_checkpoint_is_warned_of_where_it_contradicts(tensors, metadata, tmp_path, stated, warned):
    write_safetensors(tmp_path / "mine.safetensors", tensors, metadata)
    lines = [
        "model:",
        "  target: os.system",
        "  params:",
        f"    parameterization: {stated}",
        "    base_learning_rate: 1",
    ]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        base = velatura.open_base(tmp_path / "mine.safetensors")
    assert base.family.prediction == "epsilon"
    assert [("mine.yaml says" in str(each.message)) for each in caught] == [True] * warned


def test_another_kind_of_weights_is_refused(file, tiny, tmp_path):
    with pytest.raises(velatura.VelaturaError, match="kind of weights"):
        velatura.open_base(file, weights="emma")
    velatura.save(tiny, tmp_path / "folder")
    with pytest.raises(UnsupportedBase, match="one kind of weights"):
        velatura.open_base(tmp_path / "folder", weights="ema")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_weights_are_converted_to_the_requested_precision(tensors, metadata, tiny, kind):
    """Values that each of the kinds can hold come through unharmed."""
    plain = {key: tensor.to(torch.float8_e4m3fn).float() for key, tensor in tensors.items()}
    base = read({key: tensor.to(kind) for key, tensor in plain.items()}, metadata)
    expected = {key: tensor.to(torch.float8_e4m3fn).float() for key, tensor in tiny.unet.state_dict().items()}
    assert same(base.unet.state_dict(), expected)


BAD = [
    item["file"]
    for item in json.loads((HOSTILE.parent / "index.json").read_text())
    if item["must"] == "refuse" and item["class"] in {"container", "pickle_gadget", "pickle_machine", "truncated"}
]


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_no_hostile_file_is_run_or_opened_as_a_base(tmp_path, monkeypatch):
    monkeypatch.setenv("VELATURA_MARKER_DIR", str(tmp_path))
    for name in BAD:
        with pytest.raises(BadFile) as caught:
            velatura.open_base(HOSTILE.parent / name)
        assert "\n" not in str(caught.value), name
    assert len(BAD) > 100
    assert not list(tmp_path.iterdir())
