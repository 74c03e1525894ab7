"""What a library remembers between runs: how little it reads the second time, and that nothing is the worse for it."""

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import velatura
from velatura.errors import VelaturaWarning
from velatura.library import hashes
from velatura.library.hashes import Hashes
from velatura.library.index import INDEX_FILE
from velatura.tensors import write_safetensors

DATA = Path(__file__).parents[1] / "data"
ENDINGS = (".pt", ".bin", ".safetensors", ".json", ".txt", ".info")
watched: list[str] = []
is_watching = False


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Note every file that is opened, by whomever."""
    if is_watching and event == "open" and str(arguments[0]).endswith(ENDINGS):
        watched.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def _watching():
    sys.addaudithook(watch)  # for good: Python has no way to take it away


@pytest.fixture
def opened():
    """The files of a library that are opened from here on."""
    global is_watching  # noqa: PLW0603
    watched.clear()
    is_watching = True
    yield watched
    is_watching = False


@pytest.fixture
def folder(tmp_path):
    """A folder with some of everything."""
    here = tmp_path / "models"
    here.mkdir()
    shutil.copyfile(DATA / "hypernet/m00_linear.pt", here / "inca.pt")
    shutil.copyfile(DATA / "nature/learned_embeds.bin", here / "hands.bin")
    (here / "inca.json").write_text('{"activation text": "in the inca style"}')
    (here / "hurt.safetensors").write_bytes(b"cut short")
    return here


def facts(folder: Path, cache: Path) -> list[dict[str, object]]:
    return [entry.facts() for entry in velatura.Library(folder, cache=cache).entries()]


def test_a_second_listing_opens_no_file(folder, tmp_path, opened):
    before = facts(folder, tmp_path / "cache")
    assert {Path(path).name for path in opened} == {"inca.pt", "hands.bin", "inca.json", "hurt.safetensors"}
    opened.clear()
    assert facts(folder, tmp_path / "cache") == before
    assert opened == []


def test_two_thousand_files_are_opened_once(tmp_path, opened):
    here = tmp_path / "models"
    here.mkdir()
    write_safetensors(here / "0.safetensors", {"emb_params": torch.zeros(1, 768)})
    for number in range(1, 2000):
        (here / f"{number}.safetensors").hardlink_to(here / "0.safetensors")
    opened.clear()
    assert len(facts(here, tmp_path / "cache")) == 2000
    assert len(set(opened)) == 2000
    opened.clear()
    assert len(facts(here, tmp_path / "cache")) == 2000
    assert opened == []


def test_only_what_is_new_or_changed_is_looked_into(folder, tmp_path, opened):
    facts(folder, tmp_path / "cache")
    opened.clear()
    shutil.copyfile(DATA / "nature/half.bin", folder / "late.bin")
    shutil.copyfile(DATA / "nature/half.bin", folder / "new.part")
    (folder / "new.part").replace(folder / "hands.bin")
    (folder / "inca.json").write_text('{"activation text": "in another style"}')
    opened.clear()
    found = {row["name"]: row for row in facts(folder, tmp_path / "cache")}
    assert sorted({Path(path).name for path in opened}) == ["hands.bin", "inca.json", "late.bin"]
    assert found["hands"]["nature"]["card"]["outline"] == "2 vectors of 24"
    assert found["inca"]["trigger_words"] == ("in another style",)


def test_a_file_of_the_same_size_and_time_in_another_ones_place_is_seen(folder, tmp_path):
    path = folder / "hands.bin"
    before, state = facts(folder, tmp_path / "cache"), path.stat()
    data = bytearray(path.read_bytes())
    data[:4] = b"xxxx"
    (folder / "new").write_bytes(data)
    os.utime(folder / "new", ns=(state.st_atime_ns, state.st_mtime_ns))
    (folder / "new").replace(path)
    assert facts(folder, tmp_path / "cache") != before


def test_nothing_is_hashed_twice(folder, tmp_path, monkeypatch):
    library = velatura.Library(folder, cache=tmp_path / "cache")
    first = library.with_hashes(library.entry("inca"))
    assert first.hashes == Hashes.from_file(folder / "inca.pt")
    monkeypatch.setattr(hashes.Hashes, "from_file", None)
    for other in (library, velatura.Library(folder, cache=tmp_path / "cache")):
        assert other.with_hashes(other.entry("inca")).hashes == first.hashes
    assert velatura.Library(folder, cache=tmp_path / "cache").path(first.hashes.sha256[:10]) == folder / "inca.pt"


def test_a_changed_file_is_hashed_again(folder, tmp_path):
    library = velatura.Library(folder, cache=tmp_path / "cache")
    before = library.with_hashes(library.entry("hands"))
    shutil.copyfile(DATA / "nature/half.bin", folder / "hands.bin")
    assert library.entry("hands").hashes is None
    assert (
        library.with_hashes(before).hashes != before.hashes
        or library.with_hashes(library.entry("hands")).hashes != before.hashes
    )


def test_a_base_of_a_known_hash_is_opened_without_hashing_it(tiny, tmp_path, monkeypatch):
    velatura.save(tiny, tmp_path / "small.safetensors")
    before = velatura.Library(tmp_path, cache=tmp_path / "cache").base("small", device="cpu").hash
    monkeypatch.setattr(hashes.Hashes, "from_file", None)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert velatura.Library(tmp_path, cache=tmp_path / "cache").base("small", device="cpu").hash == before


def replaced(path: Path, value: float) -> None:
    """Put a new file of more than a MiB in the place of another one, of the same size and time."""
    write_safetensors(path.with_name("new"), {"x": torch.full((300_000,), value)})
    os.utime(path.with_name("new"), (1, 1))
    path.with_name("new").replace(path)


def test_hashes_outlast_the_numbers_of_files_but_not_other_content(tmp_path):
    path = tmp_path / "big.safetensors"
    replaced(path, 1)
    library = velatura.Library(tmp_path, cache=tmp_path / "cache")
    before = library.with_hashes(library.entry("big")).hashes
    replaced(path, 1)
    assert library.entry("big").hashes == before
    replaced(path, 2)
    assert library.entry("big").hashes is None


def test_what_is_gone_is_forgotten(folder, tmp_path):
    facts(folder, tmp_path / "cache")
    (folder / "hands.bin").unlink()
    assert "hands" not in {row["name"] for row in facts(folder, tmp_path / "cache")}
    with sqlite3.connect(tmp_path / "cache" / INDEX_FILE) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (2,)
    database.close()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda file: file.write_bytes(b"no database at all" * 100), id="no database"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:5000]), id="cut short"),
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: asked(file, "PRAGMA user_version = 99"), id="another version"),
        pytest.param(lambda file: asked(file, "UPDATE files SET nature = '{}', notes = 'x'"), id="strange rows"),
    ],
)
def test_a_broken_index_is_built_anew(folder, tmp_path, spoil):
    before = facts(folder, tmp_path / "cache")
    spoil(tmp_path / "cache" / INDEX_FILE)
    assert facts(folder, tmp_path / "cache") == before
    assert facts(folder, tmp_path / "cache") == before


def asked(file: Path, question: str) -> None:
    database = sqlite3.connect(file)
    with database:
        database.execute(question)
    database.close()


def test_where_no_index_can_be_kept_it_is_done_without(folder, tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.warns(VelaturaWarning, match=r"cannot be used .*set VELATURA_CACHE to another folder"):
        assert len(facts(folder, tmp_path / "cache")) == 3


def test_an_index_that_cannot_be_written_is_read(folder, tmp_path, opened):
    before = facts(folder, tmp_path / "cache")
    (tmp_path / "cache" / INDEX_FILE).chmod(0o400)
    (tmp_path / "cache").chmod(0o500)
    opened.clear()
    assert facts(folder, tmp_path / "cache") == before
    assert opened == []
    (tmp_path / "cache").chmod(0o700)


def test_an_index_that_is_locked_is_done_without(folder, tmp_path, monkeypatch):
    before = facts(folder, tmp_path / "cache")
    monkeypatch.setattr("velatura.library.index.LOCK_TIMEOUT_SECONDS", 0.01)
    database = sqlite3.connect(tmp_path / "cache" / INDEX_FILE)
    database.execute("BEGIN EXCLUSIVE")
    with pytest.warns(VelaturaWarning, match="database is locked"):
        assert facts(folder, tmp_path / "cache") == before
    database.close()


def listed(folder: Path, cache: Path, count: int) -> int:
    """List a folder over and over, and say how often all was as it should be."""
    return sum(len(facts(folder, cache)) == 3 for _ in range(count))


def test_two_processes_may_share_an_index(folder, tmp_path):
    pool = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Pool(2)
    with pool:
        assert pool.starmap(listed, [(folder, tmp_path / "cache", 20)] * 2) == [20, 20]


def test_the_cache_may_be_named_by_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "mine"))
    velatura.Library(folder).entries()
    assert (tmp_path / "mine" / INDEX_FILE).is_file()


def test_a_known_library_is_listed_without_torch(folder, tmp_path):
    facts(folder, tmp_path / "cache")
    program = f"""
import sys, velatura
print(len(velatura.Library({str(folder)!r}, cache={str(tmp_path / "cache")!r}).entries()), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n"


def test_what_was_looked_into_before_an_interruption_stays_known(folder, tmp_path, opened):
    def interrupt(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.Library(folder, cache=tmp_path / "cache").entries(on_file=interrupt)
    first = {Path(path).name for path in opened}
    opened.clear()
    facts(folder, tmp_path / "cache")
    assert len(set(opened)) == 1
    assert {Path(path).name for path in opened}.isdisjoint(first)
