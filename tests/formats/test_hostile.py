"""Bad files: each is refused in one line, or loads with a warning, as tests/data/hostile says; none is ever run."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.errors import BadFile, VelaturaWarning
from velatura.formats.inspect.inspect import inspect_file

FOLDER = Path(__file__).parents[1] / "data" / "hostile"
ITEMS = json.loads((FOLDER / "index.json").read_text())


def those(must, *classes):
    chosen = [item for item in ITEMS if item["must"] == must and (not classes or item["class"] in classes)]
    return [pytest.param(item, id=item["file"]) for item in chosen if item["class"] != "optimizer"]


def is_one_line_about(message, item):
    return Path(item["file"]).name in message and "\n" not in message and message.isprintable() and len(message) < 500


@pytest.fixture(autouse=True)
def markers(tmp_path, monkeypatch):
    """A payload that runs leaves a file here."""
    monkeypatch.setenv("VELATURA_MARKER_DIR", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("item", those("refuse"))
def test_it_is_refused_in_one_line(item):
    with pytest.raises(BadFile) as caught:
        velatura.open_overlay(FOLDER / item["file"])
    assert is_one_line_about(str(caught.value), item)


@pytest.mark.parametrize("item", those("warn"))
def test_it_loads_with_a_warning(item):
    with pytest.warns(VelaturaWarning) as caught:
        velatura.open_overlay(FOLDER / item["file"])
    assert all(is_one_line_about(str(each.message), item) for each in caught)


@pytest.mark.parametrize("item", those("load", "hypernetwork", "lora", "embedding"))
def test_it_loads_whole(item):
    weights = velatura.open_overlay(FOLDER / item["file"]).state_dict().values()
    if "expect" in item:
        assert len(weights) == item["expect"]["tensors"]
        assert sum(float(each.double().sum()) for each in weights) == pytest.approx(item["expect"]["sum"], abs=1e-3)


def inspect(item):
    """Return what a library says of a file: that it is refused and why, or the warnings of opening it."""
    try:
        info = inspect_file(FOLDER / item["file"])
    except BadFile as error:
        return "refuse", str(error)
    if info.problem:
        return "refuse", info.problem
    return ("warn", " ".join(info.warnings)) if info.warnings else ("load", item["file"])


OVERLAYS = ("hypernetwork", "lora", "embedding", "container", "pickle_gadget", "pickle_machine")
NOTHING_INSIDE = {  # these are no files of overlays, of which a library says what they are
    "embedding/s_ti_png_no_data.png": "load",
    "embedding/s_ti_png_pixels_noise.png": "load",
}


@pytest.mark.parametrize("item", [case for must in ("refuse", "warn", "load") for case in those(must, *OVERLAYS)])
def test_inspecting_refuses_and_warns_as_opening_does(item):
    verdict, message = inspect(item)
    assert verdict == NOTHING_INSIDE.get(item["file"], item["must"])
    assert Path(item["file"]).name in message
    assert message.isprintable()


@pytest.mark.parametrize("item", [case for case in those("refuse") if "limits" in case.values[0]])
def test_a_small_file_costs_little(item):
    limits, start = item["limits"], time.process_time()
    tracemalloc.start()
    with pytest.raises(BadFile):
        velatura.open_overlay(FOLDER / item["file"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 * limits["rss_mb"] / 10
    assert time.process_time() - start < 5 * limits["secs"]  # tracing takes most of it


@pytest.mark.parametrize("name", ["pickle_gadget/s_g_os_system.pt", "hypernetwork/s_hn_nested_60k.pt"])
def test_the_command_line_refuses_in_one_line(name, capsys):
    assert main(["show", str(FOLDER / name)]) == USER_ERROR_STATUS
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix's")
def test_a_pipe_is_not_waited_for(tmp_path_factory, capsys):
    pipe = tmp_path_factory.mktemp("pipes") / "inca.pt"
    os.mkfifo(pipe)
    with pytest.raises(BadFile, match="neither a file nor a directory"):
        velatura.open_overlay(pipe)
    assert main(["show", str(pipe)]) == USER_ERROR_STATUS
    assert "neither a file nor a folder" in capsys.readouterr().err
