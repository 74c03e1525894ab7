"""Autoencoders of SD1 and SDXL in files of their own, which have the same tensors."""

import warnings
from dataclasses import replace

import pytest
import torch

from velatura.base.families import FAMILIES
from velatura.errors import VelaturaWarning, WrongBase
from velatura.formats.parts import vae_family
from velatura.formats.parts.vae_family import check_vae_family
from velatura.tensors import open_state_dict, write_safetensors

SCALES = {"SD1": 0.18215, "SD2": 0.18215, "SDXL": 0.13025}  # of the published models


@pytest.fixture
def write(tmp_path):
    """Write an autoencoder of the same tensors under any name, and open it."""

    def write_vae(name, **metadata):
        path = tmp_path / name
        write_safetensors(path, {"encoder.conv_in.weight": torch.ones(1)}, metadata)
        return open_state_dict(path)

    return write_vae


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Names under which they are published and shared
NAMES = {
    "sdxl_vae": "SDXL",
    "sdxl.vae": "SDXL",
    "xlVAEC_e7": "SDXL",
    "ponyDiffusionV6XL_vae": "SDXL",
    "vae-ft-mse-840000-ema-pruned": "SD1",
    "kl-f8-anime2": "SD1",
    "animevae": "SD1",
    "sd15_vae": "SD1",
}


@pytest.mark.parametrize("family", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_tells_another_family_is_warned_of(write, family, name):
    contents = write(f"{name}.safetensors")
    if SCALES[family] == SCALES[NAMES[name]]:
        check_vae_family(contents, FAMILIES[family])
        return
    with pytest.warns(VelaturaWarning, match=f"by its name it is the autoencoder of an {NAMES[name]}"):
        check_vae_family(contents, FAMILIES[family], warns_of_unknown=False)


@pytest.mark.parametrize("family", SCALES)
def test_one_that_says_nothing_is_warned_of_where_it_was_asked_for(write, family):
    contents = write("soft.safetensors")
    with pytest.warns(VelaturaWarning, match=f"taken for one of an {family}; if pictures come out discoloured"):
        check_vae_family(contents, FAMILIES[family])
    check_vae_family(contents, FAMILIES[family], warns_of_unknown=False)
    check_vae_family(contents, FAMILIES["tiny"])


@pytest.mark.parametrize("family", SCALES)
@pytest.mark.parametrize(
    ("architecture", "stated"),
    [("stable-diffusion-xl-v1-base", "SDXL"), ("stable-diffusion-v1", "SD1"), ("stable-diffusion-v2-768-v", "SD2")],
)
def test_metadata_tell_the_family_whatever_the_name(write, family, architecture, stated):
    contents = write("sdxl_vae_840000.safetensors", **{"modelspec.architecture": architecture})
    if SCALES[family] == SCALES[stated]:
        check_vae_family(contents, FAMILIES[family])
        return
    with pytest.raises(WrongBase, match=rf"is the autoencoder of an {stated}.*give the autoencoder of an {family}"):
        check_vae_family(contents, FAMILIES[family])


def test_the_hash_of_a_published_file_tells_it(write, monkeypatch):
    contents = write("soft.safetensors")
    digest = vae_family.short_hash(contents.path)
    monkeypatch.setattr(vae_family, "PUBLISHED_SIZES", range(contents.path.stat().st_size, 2**20))
    monkeypatch.setitem(vae_family.FAMILY_BY_HASH, digest, "SDXL")
    check_vae_family(contents, FAMILIES["SDXL"])
    with pytest.raises(WrongBase, match=r"soft\.safetensors is the autoencoder of an SDXL"):
        check_vae_family(contents, FAMILIES["SD1"])
    with pytest.raises(WrongBase):
        check_vae_family(contents, replace(FAMILIES["SD2"], prediction="epsilon"), warns_of_unknown=False)


def test_a_file_of_no_published_size_is_not_hashed(write, monkeypatch):
    contents = write("sdxl_vae.safetensors")
    monkeypatch.setattr(vae_family, "short_hash", None)
    check_vae_family(contents, FAMILIES["SDXL"])
