"""`--processes`, accelerate and torchrun: several processes, one output, one line for what failed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import velatura
from velatura.cli.app import main
from velatura.cli.train.processes import launch
from velatura.errors import BadPlan

# torch's launcher leaves the log files of processes open that ended well
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (80, 64), "white")
        ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=color)
        image.save(folder / f"{number} a {color} ball.png")
    return folder


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def command(photos, out, *more, processes=("--processes", "2")):
    options = ["--name", "inca", "--steps", "3", "--pixels", "16", "--batch", "2", *processes]
    return ["train", "hypernet", str(photos), *options, "--out", str(out), *more]


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_number_of_processes_that_cannot_be_is_refused(count):
    with pytest.raises(BadPlan, match="choose 1 to 64"):
        launch(["train", "hypernet"], count)


@pytest.mark.slow
def test_the_command_line_trains_in_two_processes_and_leaves_its_own_as_it_was(photos, tmp_path, capfd):
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(command(photos, tmp_path / "run")) == 0
    assert (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    printed = capfd.readouterr()
    assert printed.out.count("try: ") == 1
    assert len(velatura.open_overlay(tmp_path / "run" / "inca.safetensors").state_dict()) == 32


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(tmp_path, capfd):
    assert main(command(tmp_path / "nowhere", tmp_path / "run")) == 2
    printed = capfd.readouterr()
    assert printed.err.count("error: ") == 1
    assert "nowhere does not exist" in printed.err


@pytest.mark.slow
def test_one_process_alone_makes_class_pictures_and_writes_the_checkpoint(photos, tmp_path, capfd):
    words = command(photos, tmp_path / "run", "--class-prompt", "a ball", "--class-pictures", "2", "--as", "checkpoint")
    assert main(["train", "dreambooth", *words[2:]]) == 0
    printed = capfd.readouterr()
    assert printed.out.count("2 class pictures of a ball") == 1
    assert sorted(path.name for path in (photos / "reg").glob("*.png")) == ["class-0001.png", "class-0002.png"]
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["inca-checkpoint.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "29518"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_start_it_too(photos, tmp_path, launcher):
    words = command(photos, tmp_path / "run", processes=())
    finished = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "velatura", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("try: ") == 1
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_once_and_the_run_can_be_resumed(photos, tmp_path, number):
    words = command(photos, tmp_path / "run", "--set", "steps=400")
    run = subprocess.Popen(
        [sys.executable, "-m", "velatura", *words], stderr=subprocess.PIPE, text=True, env=environment()
    )
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and '"loss"' in log.read_text()):
        time.sleep(0.1)
    run.send_signal(number)
    _, printed = run.communicate(timeout=120)
    assert run.returncode == 130
    assert printed.count("interrupted") == 1
    assert "velatura resume" in printed


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_one_line(photos, tmp_path):
    words = command(photos, tmp_path / "run", "--set", "steps=400")
    run = subprocess.Popen(
        [sys.executable, "-m", "velatura", *words], stderr=subprocess.PIPE, text=True, env=environment()
    )
    log = tmp_path / "run" / "log.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and '"loss"' in log.read_text()):
        time.sleep(0.1)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    second = next(child for child in children if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    _, printed = run.communicate(timeout=120)
    assert run.returncode not in {0, 130}
    assert printed.count("error: ") == 1
    assert "another process of this training is gone" in printed
    assert "velatura resume" in printed
