"""What a base predicts: the caller's word, then the file's, then the .yaml's beside it, then epsilon.

A1111 follows the .yaml beside a checkpoint; LDM's configurations name `parameterization: "eps"` or `"v"`, sgm's (SDXL)
a class EpsScaling or VScaling.
"""

import warnings

import pytest
import torch

import velatura
from velatura.errors import UnknownName, VelaturaWarning
from velatura.formats.checkpoints import prediction
from velatura.tensors import open_state_dict, open_tensors, write_safetensors

LDM_YAML = 'model:\n  params:\n    parameterization: "v"\n'
SGM_YAML = "      scaling_config:\n        target: sgm.modules.diffusionmodules.denoiser_scaling.{}\n"


@pytest.fixture
def write(file, tmp_path):
    """Write the tiny base as most files are: with nothing in it that tells what it predicts."""

    def write_checkpoint(yaml: str = "", stated: str = "", **markers: torch.Tensor):
        contents = open_tensors(file)
        metadata = {key: value for key, value in contents.metadata.items() if not key.startswith("modelspec.")}
        if stated:
            metadata["modelspec.prediction_type"] = stated
        path = tmp_path / "mine.safetensors"
        write_safetensors(path, dict(contents.tensors) | markers, metadata)
        if yaml:
            path.with_suffix(".yaml").write_text(yaml)
        return path

    return write_checkpoint


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("", "epsilon"),
        (LDM_YAML, "v_prediction"),
        ("    parameterization: v  # as trained\n", "v_prediction"),
        ("    parameterization: 'eps'\n", "epsilon"),
        ("#   parameterization: v\n", "epsilon"),
        (SGM_YAML.format("VScaling"), "v_prediction"),
        (SGM_YAML.format("EpsScaling"), "epsilon"),
    ],
)
def test_a_yaml_wins_over_a_file_that_says_nothing(write, yaml, expected):
    assert velatura.open_base(write(yaml)).family.prediction == expected


def test_a_yaml_of_an_unknown_prediction_is_named(write):
    with pytest.warns(VelaturaWarning, match=r"mine\.yaml says that mine\.safetensors predicts 'x0'.*ignored"):
        base = velatura.open_base(write("    parameterization: x0\n"))
    assert base.family.prediction == "epsilon"


@pytest.mark.parametrize("how", ["prediction", "yaml", "metadata", "tensor"])
def test_the_callers_word_is_stronger_than_all(write, how):
    path = {
        "prediction": write,
        "yaml": lambda: write(LDM_YAML),
        "metadata": lambda: write(stated="v"),
        "tensor": lambda: write(v_pred=torch.empty(0), ztsnr=torch.empty(0)),
    }[how]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for word, expected in (("epsilon", "epsilon"), ("v", "v_prediction")):
            base = velatura.open_base(path, prediction=word, zero_snr=word == "v")
            assert (base.family.prediction, base.schedule.zero_snr) == (expected, word == "v")


def test_a_folder_takes_the_callers_word_too(tiny, tmp_path):
    velatura.save(tiny, tmp_path / "folder")
    base = velatura.open_base(tmp_path / "folder", prediction="v", zero_snr=True)
    assert (base.family.prediction, base.schedule.zero_snr) == ("v_prediction", True)
    velatura.save(base, tmp_path / "v")
    again = velatura.open_base(tmp_path / "v")
    assert (again.family.prediction, again.schedule.zero_snr) == ("v_prediction", True)
    assert velatura.open_base(tmp_path / "v", prediction="epsilon").family.prediction == "epsilon"


def test_a_recipe_records_the_callers_word(write, tmp_path):
    base = velatura.open_base(write(), prediction="v")
    path = velatura.generate(base, "a red house", steps=1).save(tmp_path / "house.png")
    recipe = velatura.Recipe.from_image(path)
    assert recipe.prediction == "v"
    assert "Prediction: v," in recipe.infotext()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        velatura.generate(base, recipe)
        plain = velatura.open_base(base.opened_from)
        assert velatura.generate(plain, "a red house", steps=1).recipe.prediction is None
    with pytest.warns(VelaturaWarning, match="predicts v, but this one predicts epsilon.*--prediction v"):
        velatura.generate(plain, recipe)


@pytest.mark.parametrize(("forced", "written"), [(True, "Zero Terminal SNR"), (False, "Without zero terminal SNR")])
def test_a_recipe_records_a_forced_noise_schedule_as_a1111_does(write, tmp_path, forced, written):
    """A1111 writes "Noise Schedule: Zero Terminal SNR" where its setting asks for it; other values ask for nothing."""
    base = velatura.open_base(write(**{} if forced else {"ztsnr": torch.empty(0)}), zero_snr=forced)
    path = velatura.generate(base, "a red house", steps=1).save(tmp_path / "house.png")
    recipe = velatura.Recipe.from_image(path)
    assert recipe.zero_snr is forced
    assert f"Noise Schedule: {written}," in recipe.infotext()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        velatura.generate(base, recipe)
        plain = velatura.open_base(base.opened_from)
        assert velatura.generate(plain, "a red house", steps=1).recipe.zero_snr is None
    with pytest.warns(VelaturaWarning, match=f"zero_snr={forced} .--{'no-' * (not forced)}zero-snr"):
        velatura.generate(plain, recipe)


def test_other_noise_schedules_in_infotext_are_named():
    line = "a house\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96, Noise Schedule: "
    assert velatura.Recipe.from_infotext(f"{line}Default").zero_snr is None
    assert velatura.Recipe.from_infotext(f"{line}Zero Terminal SNR").zero_snr is True
    with pytest.warns(VelaturaWarning, match="Noise Schedule 'Cosine' is not known"):
        assert velatura.Recipe.from_infotext(f"{line}Cosine").zero_snr is None


def test_a_recipe_records_averaged_weights(write, tmp_path):
    contents = open_state_dict(write())
    averages = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor * 0.5
        for key, tensor in contents.tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    path = tmp_path / "averaged.safetensors"
    write_safetensors(path, {**contents.tensors, **averages}, contents.metadata)
    bases = {kind: velatura.open_base(path, weights=kind) for kind in ("ema", "last")}
    recipe = velatura.generate(bases["ema"], "a red house", steps=1).recipe
    assert recipe.weights == "ema"
    assert velatura.Recipe.from_infotext(recipe.infotext()) == recipe
    with pytest.warns(VelaturaWarning, match=r"with the ema weights of its file.*--weights ema"):
        velatura.generate(bases["last"], recipe)
    with pytest.warns(VelaturaWarning, match=r"with the last weights of its file.*--weights last"):
        velatura.generate(bases["ema"], velatura.generate(bases["last"], "a red house", steps=1).recipe)


def test_a_library_takes_the_callers_word_too(write):
    path = write()
    library = velatura.Library(path.parent)
    predictions = [library.base("mine", prediction=word).family.prediction for word in (None, "v", "epsilon")]
    assert predictions == ["epsilon", "v_prediction", "epsilon"]


def test_another_word_is_refused(write):
    with pytest.raises(UnknownName, match="prediction"):
        velatura.open_base(write(), prediction="velocity")


def test_a_trial_step_of_an_sd2_that_contradicts_its_yaml_is_said(tmp_path):
    with pytest.warns(VelaturaWarning, match="trial step looks like v_prediction: open it with prediction='v'"):
        prediction.warn_of_trial_conflict(tmp_path / "two.safetensors", "epsilon", "v_prediction")
