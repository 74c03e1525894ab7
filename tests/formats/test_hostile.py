"""Bad files: each is refused in one line, or loads with a warning, as tests/data/hostile says; none is ever run."""

import json
from pathlib import Path

import pytest

import velatura
from velatura.errors import BadFile, VelaturaWarning

FOLDER = Path(__file__).parents[1] / "data" / "hostile"
ITEMS = json.loads((FOLDER / "index.json").read_text())


def those(must):
    return [pytest.param(item, id=item["file"]) for item in ITEMS if item["must"] == must]


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
    said = str(caught.value)
    assert item["file"] in said
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize("item", those("warn"))
def test_it_loads_with_a_warning(item):
    with pytest.warns(VelaturaWarning, match=item["file"]):
        velatura.open_overlay(FOLDER / item["file"])


@pytest.mark.parametrize("item", those("load"))
def test_it_loads_whole(item):
    weights = velatura.open_overlay(FOLDER / item["file"]).state_dict().values()
    if "expect" in item:
        assert len(weights) == item["expect"]["tensors"]
        assert sum(float(each.double().sum()) for each in weights) == pytest.approx(item["expect"]["sum"], abs=1e-3)
