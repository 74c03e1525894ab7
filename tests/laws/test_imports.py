"""Commands answer at once: none imports a heavy library that its answer does not need."""

import subprocess
import sys

import pytest

import velatura

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
    "dataset check nowhere": ALL,
    "train hypernet nowhere": ALL,
    "train lora photos/nowhere": ALL,
    "train dreambooth nowhere": ALL,
    "pull civitai:1 --limit much": ALL,
    "pull nowhere": ALL,
    "pull civitai:much": ALL,
    "pull hub:nowhere": ALL,
    "pull ftp://example.org/a.safetensors": ALL,
}
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
    (folder / "photos").symlink_to(velatura.tiny_pictures("neon"))
    velatura.Library(folder / "known").entries()  # the index knows it from now on
    (folder / "new").mkdir()
    velatura.save(velatura.Hypernetwork.for_base(tiny, name="unknown"), folder / "new" / "unknown.safetensors")
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
