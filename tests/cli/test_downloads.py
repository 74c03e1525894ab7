import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer

from tests.downloads.server import Server, serving
from velatura.cli.app import INTERRUPTED_STATUS, USER_ERROR_STATUS, main
from velatura.cli.files.pull import parse_byte_count

INCA = Path(__file__).parents[1] / "data" / "hypernet" / "e05_actout.pt"


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("velatura.downloads.services.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)
    with serving() as made:
        monkeypatch.setenv("CIVITAI_ENDPOINT", made.root)
        yield made


def test_pull_says_what_has_come_and_where_it_lies(server: Server, capsys):
    Path("models/hypernetworks").mkdir(parents=True)
    Path("models/Lora").mkdir()
    server.has_on_civitai(INCA.read_bytes(), name="inca.pt")
    assert main(["pull", "civitai:10"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "models/hypernetworks/inca.pt: hypernet for SD 1.5, 0.0 MB"
    assert said[1].startswith("hash: ")
    assert said[2] == "trigger words: ink style"
    assert main(["pull", "civitai:10"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", was there already")


def test_pull_says_it_as_json(server: Server, capsys, tmp_path):
    server.has_on_civitai(INCA.read_bytes(), name="inca.pt", version=7)
    assert main(["pull", "civitai:10@7", "--to", str(tmp_path / "new"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["made_for"], said["was_there"]) == ("hypernet", "SD 1.5", False)
    assert Path(said["path"]) == tmp_path / "new" / "inca.pt"


def test_a_mistake_is_one_line_and_leaves_nothing(server: Server, capsys, tmp_path):
    assert main(["pull", "civitai:11"]) == USER_ERROR_STATUS
    said = capsys.readouterr().err
    assert said.startswith("error: http://127.0.0.1")
    assert said.count("\n") == 1
    server.has_on_civitai(INCA.read_bytes(), name="inca.pt")
    assert main(["pull", "civitai:10", "--limit", "1KB"]) == USER_ERROR_STATUS
    assert "allow more with --limit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_names_of_strangers_reach_no_terminal_raw(server: Server, capsys):
    server.has_on_civitai(INCA.read_bytes(), name="in\x1b[31mca\n.pt")
    assert main(["pull", "civitai:10"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_ctrl_c_says_that_the_same_command_goes_on(server: Server, capsys, monkeypatch):
    def press(*_):
        raise KeyboardInterrupt

    server.has_on_civitai(INCA.read_bytes(), name="inca.pt")
    monkeypatch.setattr("velatura.downloads.transfer.Transfer._write", press)
    assert main(["pull", "civitai:10"]) == INTERRUPTED_STATUS
    assert "interrupted; the bytes so far are kept, the same command resumes the download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("500 MB", 5 * 10**8), ("2.5gib", 5 * 2**29), ("1k", 1000), ("1024", 1024), ("1TB", 10**12)],
)
def test_a_size_is_read_as_people_write_it(text, count):
    assert parse_byte_count(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 giga", "1e9", "inf"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is not a size: write it as 500MB or 8GB"):
        parse_byte_count(text)


def large(size: int) -> bytes:
    """A LoRA of so many bytes, of zeros."""
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.lora_up.weight"
    header = json.dumps({key: {"dtype": "F32", "shape": [size // 4, 1], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.slow
def test_a_killed_command_leaves_a_part_and_the_next_one_goes_on(server: Server, tmp_path):
    body = large(200_000_000)
    url = server.offers("/ink.safetensors", body, breaks=[120_000_000])
    good, killed = server.replies["/ink.safetensors"], threading.Event()

    def stuck(handler):
        good(handler)
        killed.wait(60)

    server.replies["/ink.safetensors"] = stuck
    first = subprocess.Popen([sys.executable, "-m", "velatura", "pull", url])
    part = tmp_path / "ink.safetensors.part"
    while not (part.exists() and part.stat().st_size > 100_000_000):
        time.sleep(0.05)
    first.kill()
    first.wait()
    killed.set()
    assert not (tmp_path / "ink.safetensors").exists()
    kept = part.stat().st_size
    command = "import resource, sys; from velatura.cli.app import main; status = main(sys.argv[1:]); "
    command += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    bare = "import resource, torch, velatura.downloads.pull; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    without = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    done = subprocess.run([sys.executable, "-c", command, "pull", url], capture_output=True, text=True, check=True)
    assert server.ranges()[-1] == f"bytes={kept}-"
    assert (tmp_path / "ink.safetensors").read_bytes() == body
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ink.safetensors"]
    assert int(done.stdout.split()[-1]) - int(without.stdout) < 60_000  # KiB: what comes is not held in memory
