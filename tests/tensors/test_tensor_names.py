"""Names of tensors that no program writes are refused in every container, and odd names of real programs are not."""

import pytest
import torch
from safetensors.torch import save_file

from velatura.errors import BadFile
from velatura.tensors import open_meta, open_state_dict, open_tensors

BAD_NAMES = [
    "",
    " ",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "../../x",
    "x/../y",
    "..",
    "..\\x",
    "/etc/passwd",
    "C:\\x",
    "__class__",
    "unet.__init__.weight",
]
REAL_NAMES = ["*", "unet:0:up", "<cat/toy>", "a..b", "lora_unet___x", "model_ema.diffusion_modelout0weight", "猫"]


@pytest.mark.parametrize("open_file", [open_tensors, open_state_dict, open_meta])
@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_name_that_no_program_writes_is_refused(tmp_path, open_file, name, suffix):
    path, tensors = tmp_path / f"x{suffix}", {"good": torch.zeros(2), name: torch.zeros(3)}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    with pytest.raises(BadFile, match=f"x{suffix} has a tensor with ") as caught:
        open_file(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", REAL_NAMES)
def test_odd_names_of_real_programs_are_read(tmp_path, name):
    save_file({name: torch.ones(3)}, tmp_path / "x.safetensors")
    torch.save({name: torch.ones(3)}, tmp_path / "x.pt")
    assert list(open_tensors(tmp_path / "x.safetensors").tensors) == [name]
    assert list(open_state_dict(tmp_path / "x.pt").tensors) == [name]
