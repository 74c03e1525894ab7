import subprocess
import sys

import pytest
import torch

from velatura.tensors import write_safetensors

PROGRAM = """
import resource, sys
from velatura.merging.checkpoints.merge import merge
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(*sys.argv[1:3], 0.3, minus=sys.argv[3], out=sys.argv[4])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise elsewhere")
def test_merging_holds_a_few_tensors_at_a_time_and_no_file(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for seed, file in enumerate(files):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"model.diffusion_model.{index}.weight": torch.randn(2**22, generator=generator).half()
            for index in range(24)
        }
        write_safetensors(file, tensors)  # of 8 MiB each, 192 MiB in all
    command = [sys.executable, "-c", PROGRAM, *map(str, files), str(tmp_path / "out.safetensors")]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(process.stdout) < 160  # MiB, of files of 768 in all
