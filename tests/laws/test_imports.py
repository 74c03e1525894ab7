"""Commands answer at once: none imports a heavy library that its answer does not need."""

import gc
import subprocess
import sys

import pytest

import velatura
from velatura.imports import pause_garbage_collection

MODEL_LIBRARIES = ("diffusers", "transformers", "accelerate", "peft", "torch._dynamo")
ALL = ("torch", *MODEL_LIBRARIES)
# Words behind `velatura`, and the libraries that this command must not import
COMMANDS = {
    "--help": ALL,
    "train hypernet --help": ALL,
    "list known": ALL,
    "dataset check photos": ALL,
    "show run": ALL,
    "resume run --help": ALL,
    "list --kind run": ALL,
    "serve --help": ALL,
    "show known/net.safetensors": ALL,
    "show new/unknown.safetensors": MODEL_LIBRARIES,  # a file that the index does not know is read
    "show new/lora.safetensors": MODEL_LIBRARIES,
    "convert known/net.safetensors net.pt --overwrite": MODEL_LIBRARIES,
}
# Commands that end with a refusal, and what must not be imported before it
REFUSALS = {
    "list nowhere": ALL,
    "list --kind lorra": ALL,
    "show nowhere.pt --library empty": ALL,
    "generate": ALL,
    "generate a --library nowhere": ALL,
    "generate a --recipe nowhere.png": ALL,
    "generate a --overlay nowhere.pt": ALL,
    "generate a --base nowhere --library empty": ALL,
    "generate a --sampler Eulre": ALL,
    "generate a --scheduler Karas": ALL,
    "generate a --style nowhere": ALL,
    "generate <hypernet:nowhere:1> --library empty": ALL,
    "generate <hyponet:net:1>": ALL,
    "generate a --out a.bmp": ALL,
    "serve --host 0.0.0.0": ALL,
    "serve --library nowhere --port 0": ALL,
    "generate a --recipe recipe.txt --library empty": ALL,  # made on a base that is not there
    "grid a": ALL,
    "grid a --x seed=1 --base nowhere --library empty": ALL,
    "grid a --x base=tiny,nowhere --library empty": ALL,
    "grid <hypernet:nowhere:1> --x seed=1 --library empty": ALL,
    "grid <hypernet:{s}:1> --x s=nowhere,other --library empty": ALL,
    "grid a|<lora:nowhere:1> --matrix --library empty": ALL,
    "grid a --x sampler=Euler,Eulre": ALL,
    "grid a --x color=red": ALL,
    "bake nowhere known/net.safetensors --out baked.safetensors --library empty": ALL,
    "bake tiny nowhere --out baked.safetensors --library empty": ALL,
    "bake tiny net:0.5 nowhere.pt:0.5 --out baked.safetensors --library known": ALL,
    "merge tiny nowhere --out mixed.safetensors --library empty": ALL,
    "merge net:0.5 nowhere:0.5 --out mixed.safetensors --library known": ALL,
    "merge tiny tiny --against nowhere --out mixed.safetensors --library empty": ALL,
    "extract tiny nowhere --out lora.safetensors --library empty": ALL,
    "convert nowhere.pt net.safetensors": ALL,
    "convert known/net.safetensors lora.safetensors --as lora --base nowhere": ALL,
    "dataset check nowhere": ALL,
    "dataset caption nowhere": ALL,
    "train hypernet nowhere": ALL,
    "train lora photos/nowhere": ALL,
    "train dreambooth nowhere": ALL,
    "train hypernet photos --base nowhere --library empty": ALL,
    "train hypernet photos --start nowhere.pt": ALL,
    "pull civitai:1 --limit much": ALL,
    "pull nowhere": ALL,
    "pull civitai:much": ALL,
    "pull hub:nowhere": ALL,
    "pull ftp://example.org/a.safetensors": ALL,
}
# What neither opening the tiny base nor painting on it needs, though diffusers imports some of it where it can
UNUSED_WHILE_PAINTING = (
    "bitsandbytes",
    "cv2",
    "diffusers.pipelines",
    "lycoris",
    "matplotlib",
    "onnxruntime",
    "peft",
    "scipy",
    "tensorboard",
    "torchvision",
    "transformers.pipelines",
    "velatura.compare",
    "velatura.downloads",
    "velatura.merging",
    "velatura.training",
)
# The command line as a process of its own, as a person starts it: `main` without words
OWN_PROCESS = """
import gc, runpy, sys
names = sys.argv.pop(1).split(",")
try:
    runpy.run_module("velatura", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, *[name for name in names if sys.modules.get(name)])
    print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
PROGRAM = """
import sys
from velatura.cli.app import main
status = main(sys.argv[2:])
print("status", status, *sorted(set(sys.argv[1].split(",")) & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "run").mkdir()
    (folder / "run" / "plan.json").write_text('{"steps": 4}')
    (folder / "run" / "log.jsonl").write_text('{"files": "net", "base": "tiny"}\n{"step": 1, "loss": 0.5}\n')
    (folder / "known").mkdir()
    velatura.save(velatura.Hypernetwork.for_base(tiny, name="net"), folder / "known" / "net.safetensors")
    (folder / "empty").mkdir()
    (folder / "recipe.txt").write_text(
        "a house\nSteps: 4, Sampler: Euler, CFG scale: 7, Size: 64x64, Seed: 1, Model: nowhere"
    )
    (folder / "photos").symlink_to(velatura.tiny_pictures("neon"))
    velatura.Library(folder / "known").entries()  # the index knows it from now on
    (folder / "new").mkdir()
    velatura.save(velatura.Hypernetwork.for_base(tiny, name="unknown"), folder / "new" / "unknown.safetensors")
    velatura.save(velatura.Lora.for_base(tiny, rank=2, name="lora"), folder / "new" / "lora.safetensors")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_no_library_that_its_answer_does_not_need(command, folder):
    words = [sys.executable, "-c", PROGRAM, ",".join(COMMANDS[command]), *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "status 0", done.stdout + done.stderr


@pytest.mark.parametrize("command", REFUSALS)
def test_a_refusal_imports_no_library_that_it_does_not_need(command, folder):
    words = [sys.executable, "-c", PROGRAM, ",".join(REFUSALS[command]), *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "status 2", done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_training_says_what_it_read_before_torch_is_imported(folder):
    program = "import sys; sys.modules['torch'] = None; from velatura.cli.app import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", program, "train", "lora", "photos", "--name", "ink", "--dry-run"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert "torch" in done.stderr  # which cannot be imported
    rows = {line[:21].strip(): line[21:] for line in done.stdout.splitlines()}
    assert rows == {"folder": "photos, 16 pictures", "captions": "from file names: 0", "out": "runs/ink"}


def test_painting_on_the_tiny_base_imports_nothing_that_it_does_not_use(tmp_path):
    command = ["generate", "house", "--steps", "1", "--seed", "7", "--out", "house.png"]
    words = [sys.executable, "-c", OWN_PROCESS, ",".join(UNUSED_WHILE_PAINTING), *command]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (tmp_path / "house.png").exists(), done.stderr
    status, garbage = done.stdout.splitlines()[-2:]
    assert status == "0"
    assert garbage == "True True"  # collected again, but the modules are passed over


def test_a_command_line_run_by_other_code_leaves_its_process_alone():
    program = "import gc, sys; from velatura.cli.app import main; main(['--help']); print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_collected_after_a_pause_as_before_it(is_enabled):
    was_enabled = gc.isenabled()
    frozen = gc.get_freeze_count()
    (gc.enable if is_enabled else gc.disable)()
    try:
        with pause_garbage_collection():
            with pause_garbage_collection():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() is is_enabled
        assert gc.get_freeze_count() == frozen  # this process is not velatura's own
    finally:
        (gc.enable if was_enabled else gc.disable)()
