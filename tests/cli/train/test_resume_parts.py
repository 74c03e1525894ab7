"""A run remembers the parts of its base: `resume` opens them again without their flags."""

import json
import shlex
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

import velatura
from tests.formats.checkpoints.states import same
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.formats.checkpoints.ldm_keys import vae_to_ldm
from velatura.formats.checkpoints.ldm_text import clip_to_ldm
from velatura.tensors import open_state_dict, write_safetensors

PLAN = velatura.Plan(steps=2, batch_size=1, pixels=32, precision="float32", end_sheet=False, validation_pictures=0)
BASE, TEXT, VAE = "models/checkpoints/small.safetensors", "models/clip/sharp.safetensors", "models/vae/soft.safetensors"


def scaled(state, factor):
    return {key: tensor * factor if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def stop_training(base, out):
    """Train one of two steps, and stop."""

    def stop(step):
        raise KeyboardInterrupt

    overlay = velatura.Hypernetwork.for_base(base, seed=1, name="inca")
    with suppress(KeyboardInterrupt):
        velatura.train(base, overlay, velatura.tiny_pictures("neon"), PLAN, out=out, on_step=stop)


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """A folder with the tiny base, other parts, and a run on them that was stopped; and the base of that run."""
    root = tmp_path_factory.mktemp("parts")
    velatura.save(tiny, root / BASE)
    velatura.save(tiny, root / "folder")
    text = clip_to_ldm(scaled(tiny.text.encoders[0].model.state_dict(), 0.9), "")
    write_safetensors(root / TEXT, text)
    write_safetensors(root / VAE, vae_to_ldm(scaled(tiny.vae.state_dict(), 0.9)))
    base = velatura.open_base(
        root / BASE,
        unet=root / "folder/unet",
        text=root / TEXT,
        vae=root / VAE,
        prediction="v",
        zero_snr=True,
        dtype="float32",
        device="cpu",
    )
    stop_training(base, root / "run")
    return root, base


@pytest.fixture
def desk(stopped, tmp_path, monkeypatch):
    """A working folder with a copy of the stopped run; the parts stay where they were."""
    shutil.copytree(stopped[0] / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    """The bases that `resume` was called with."""
    bases, resume = [], velatura.resume

    def spy(base, *given, **options):
        bases.append(base)
        return resume(base, *given, **options)

    monkeypatch.setattr(velatura, "resume", spy)
    return bases


@pytest.fixture
def moved_vae(stopped):
    """The autoencoder under another name, in another folder."""
    path = stopped[0] / "elsewhere" / "renamed.safetensors"
    path.parent.mkdir()
    (stopped[0] / VAE).rename(path)
    yield path
    path.rename(stopped[0] / VAE)
    path.parent.rmdir()


@pytest.mark.usefixtures("desk")
def test_a_run_on_a_base_in_parts_is_resumed_without_flags(stopped, opened, capsys):
    root, base = stopped
    assert main(["resume", "run"]) == 0, capsys.readouterr().err
    [again] = opened
    assert same(again.vae.state_dict(), base.vae.state_dict())
    assert same(again.text.encoders[0].model.state_dict(), base.text.encoders[0].model.state_dict())
    assert (again.family.prediction, again.schedule.zero_snr) == ("v_prediction", True)
    assert again.name == base.name == "folder"
    [command] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("paint and look")]
    flags = {"--base": BASE, "--unet": "folder/unet", "--text": TEXT, "--vae": VAE}
    words = [word for flag, path in flags.items() for word in (flag, str(root / path))]
    assert f"{shlex.join(words)} --prediction v --zero-snr" in command
    assert main(["show", "run"]) == 0
    assert f"{shlex.join(words)} --prediction v --zero-snr" in capsys.readouterr().out


@pytest.mark.usefixtures("desk")
def test_a_moved_part_is_found_by_its_hash_or_named(stopped, moved_vae, opened, capsys):
    file_hash = sha256(moved_vae.read_bytes()).hexdigest()[:10]
    assert main(["resume", "run"]) == USER_ERROR_STATUS
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"the autoencoder {stopped[0] / VAE} (hash {file_hash})" in printed
    assert "(--vae)" in printed
    assert main(["resume", "run", "--library", str(moved_vae.parent)]) == 0, capsys.readouterr().err
    assert same(opened[-1].vae.state_dict(), stopped[1].vae.state_dict())


@pytest.mark.usefixtures("desk")
def test_another_part_is_refused(stopped, capsys):
    assert main(["resume", "run", "--vae", str(stopped[0] / "folder/vae")]) == USER_ERROR_STATUS
    assert "give the same ones (--vae)" in capsys.readouterr().err


def test_damaged_options_of_a_base_are_one_line(desk, capsys):
    first, *others = (desk / "run/log.jsonl").read_text().splitlines()
    damaged = json.dumps(json.loads(first) | {"base_options": {"vae": 3}})
    (desk / "run/log.jsonl").write_text("\n".join([damaged, *others]) + "\n")
    assert main(["resume", "run"]) == USER_ERROR_STATUS
    printed = capsys.readouterr().err
    assert "base_options that cannot be read" in printed
    assert printed.count("\n") == 1


def test_averaged_weights_are_opened_again(stopped, tmp_path, monkeypatch, opened, capsys):
    monkeypatch.chdir(tmp_path)
    contents = open_state_dict(stopped[0] / BASE)
    averages = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor * 0.5
        for key, tensor in contents.tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    write_safetensors(Path("averaged.safetensors"), {**contents.tensors, **averages}, contents.metadata)
    base = velatura.open_base("averaged.safetensors", weights="ema", dtype="float32", device="cpu")
    stop_training(base, "run")
    with pytest.raises(velatura.WrongBase, match="open it with weights='ema'"):
        velatura.resume(velatura.open_base("averaged.safetensors", dtype="float32", device="cpu"), "run")
    assert main(["resume", "run"]) == 0, capsys.readouterr().err
    assert same(opened[-1].unet.state_dict(), base.unet.state_dict())


def test_the_command_to_try_an_overlay_opens_the_same_base(stopped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(stopped[0])
    words = ["--base", BASE, "--vae", VAE, "--steps", "1", "--batch", "1", "--pixels", "32", "--set", "end_sheet=false"]
    words = [*words, "--set", "validation_pictures=0", "--out", str(tmp_path / "new")]
    assert main(["train", "hypernet", str(velatura.tiny_pictures("neon")), *words]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("try:")]
    called = shlex.split(line)
    for flag, path in (("--base", BASE), ("--vae", VAE)):
        assert called[called.index(flag) + 1] == str(Path(path).absolute())
