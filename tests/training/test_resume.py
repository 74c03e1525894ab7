"""A run that is interrupted, even by SIGKILL, and resumed ends as it would have without."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

import velatura
from velatura.errors import AlreadyExists, BadDataset, BadFile, NoEffect, UnsupportedBase, WrongBase
from velatura.training.run import log
from velatura.training.run.folder import RunFolder
from velatura.training.run.log import RunLog

PLAN = velatura.Plan(
    steps=5, batch_size=2, pixels=16, learning_rate="3e-3:3, 1e-3", snapshot_every=2, precision="float32"
)


@pytest.fixture
def learn(tiny, photos, tmp_path):
    """Return a function that trains a small hypernetwork, and interrupts it after some steps."""

    def run(out="run", *, until=None, **changes):
        def stop(step):
            if step.done == until:
                raise KeyboardInterrupt

        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", dropout=0.2, seed=3, name="inca")
        path = tmp_path / out
        with suppress(KeyboardInterrupt):
            velatura.train(tiny, overlay, photos, PLAN.replace(**changes), out=path, on_step=stop)
        return path

    return run


@pytest.fixture(scope="module")
def unbroken(tiny, drawn, tmp_path_factory):
    """Return the final file, as bytes, and the losses of a run without interruption."""
    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", dropout=0.2, seed=3, name="inca")
    run = velatura.train(tiny, overlay, drawn, PLAN, out=tmp_path_factory.mktemp("unbroken") / "run")
    return run.file.read_bytes(), run.losses


@pytest.fixture(scope="module")
def stopped_once(tiny, drawn, tmp_path_factory):
    """Return a run that was interrupted after its first step, to be copied."""

    def stop(step):
        raise KeyboardInterrupt

    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", dropout=0.2, seed=3, name="inca")
    run = tmp_path_factory.mktemp("stopped") / "run"
    with suppress(KeyboardInterrupt):
        velatura.train(tiny, overlay, drawn, PLAN, out=run, on_step=stop)
    return run


def final(run):
    return (run / "inca.safetensors").read_bytes()


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("kills", "seed"), [(2, 1), pytest.param(20, 2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_bit_equal(photos, tmp_path, kills, seed):
    words = [sys.executable, Path(__file__).with_name("killed_runs.py"), photos, tmp_path, str(kills), str(seed)]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    alone, killed, count = done.stdout.split()
    assert (killed, int(count)) == (alone, kills)


@pytest.mark.parametrize("until", [1, 2, 3, 4])
def test_an_interrupted_run_is_resumed_to_the_same_end(tiny, learn, unbroken, until):
    stopped = learn(until=until)
    assert not (stopped / "inca.safetensors").exists()
    seen = []
    resumed = velatura.resume(tiny, stopped, on_step=lambda step: seen.append(step.done))
    assert seen == list(range(until + 1, 6))
    logged = [record["loss"] for record in records(stopped) if "loss" in record]
    assert (final(stopped), logged) == (unbroken[0], resumed.losses) == unbroken


def test_what_was_logged_after_the_snapshot_is_logged_once(tiny, learn):
    stopped = learn(until=4)
    (stopped / "snapshots" / "inca-000004.safetensors").unlink()  # as if it was killed before that was whole
    with (stopped / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    velatura.resume(tiny, stopped)
    assert [record["step"] for record in records(stopped) if "loss" in record] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_resumed(tiny, learn):
    with pytest.raises(NoEffect, match=r"finished, its overlay is .*inca\.safetensors"):
        velatura.resume(tiny, learn())


def test_a_folder_of_anything_else_is_not_a_run(tiny, photos):
    with pytest.raises(BadFile, match="name the folder that train made"):
        velatura.resume(tiny, photos)


def changed(run, **changes):
    first, *others = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([json.dumps(json.loads(first) | changes), *others]) + "\n")


HOSTILE = {
    "names a file elsewhere": lambda run: changed(run, files="../../elsewhere"),
    "says no name": lambda run: changed(run, files=7),
    "says nothing of its overlay": lambda run: changed(run, overlay="inca"),
    "begins with a list": lambda run: (run / "log.jsonl").write_text("[1]\n"),
    "begins with less": lambda run: (run / "log.jsonl").write_text('{"files": "inca"}\n'),
    "is deep": lambda run: (run / "log.jsonl").write_text("[" * 100_000 + "\n"),
    "has no plan": lambda run: (run / "plan.json").unlink(),
    "has half a plan": lambda run: (run / "plan.json").write_text('{"steps":'),
    "has a plan in other letters": lambda run: (run / "plan.json").write_bytes(b"\xff\xfe"),
    "has no list of pictures": lambda run: (run / "data.json").unlink(),
    "has a list of numbers": lambda run: (run / "data.json").write_text('{"a.png": [1]}'),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_run_folder_that_is_damaged_or_hostile_is_refused(tiny, stopped_once, tmp_path, what):
    run = shutil.copytree(stopped_once, tmp_path / "run")
    HOSTILE[what](run)
    with pytest.raises(BadFile, match="train anew"):
        velatura.resume(tiny, run)
    assert not list(tmp_path.glob("*.safetensors"))


def test_temporary_files_of_a_crash_are_removed_and_other_files_stay(tiny, stopped_once, tmp_path):
    run = shutil.copytree(stopped_once, tmp_path / "run")
    (run / "snapshots" / ".velatura-x1y2").mkdir()
    (run / ".git").mkdir()
    (run / ".notes").write_text("mine")
    velatura.resume(tiny, run)
    assert sorted(path.name for path in [*run.glob(".*"), *run.glob("*/.*")]) == [".git", ".notes"]


def test_a_run_without_snapshots_cannot_be_resumed(tiny, learn):
    stopped = learn(until=1)
    for snapshot in (stopped / "snapshots").glob("*.state"):
        snapshot.unlink()
    with pytest.raises(BadFile, match="no complete snapshot, so the run cannot be resumed"):
        velatura.resume(tiny, stopped)


def test_a_run_is_resumed_on_its_own_base_only(tiny, xl, learn):
    with pytest.raises(WrongBase, match=r"began on tiny \(\w{10}\), this is small XL \(not from a file\)"):
        velatura.resume(xl, learn(until=1))


def test_changed_pictures_are_named_and_refused_unless_accepted(tiny, photos, learn):
    stopped = learn(until=2)
    Image.new("RGB", (32, 32), "pink").save(photos / "3 a pink wall.png")
    (photos / "1 a green ball.txt").write_text("a green ball on white")
    (photos / "2 a blue ball.png").unlink()
    changes = r"1 new \(3 a pink wall\.png\), 1 missing \(2 a blue ball\.png\), 1 changed \(1 a green ball\.png\)"
    with pytest.raises(BadDataset, match=changes):
        velatura.resume(tiny, stopped)
    assert len(velatura.resume(tiny, stopped, data_changed=True).losses) == 5


def test_two_processes_never_use_one_run(tiny, learn):
    stopped = learn(until=2)
    other = RunLog(stopped / "log.jsonl")
    with pytest.raises(AlreadyExists, match="another process is using"):
        velatura.resume(tiny, stopped)
    other.close()
    velatura.resume(tiny, stopped)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """Return a signal that this process receives: a shell lets background processes ignore SIGINT."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_the_step_and_saves_it(tiny, photos, tmp_path, unbroken, number):
    def kill(step):
        if step.done == 3:
            os.kill(os.getpid(), number)

    overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", dropout=0.2, seed=3, name="inca")
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=number.name) as stopped:
        velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "run", on_step=kill)
    assert signal.getsignal(number) == before
    assert "the overlay after step 3 of 5 is saved in" in stopped.value.__notes__[0]
    velatura.resume(tiny, tmp_path / "run")
    assert final(tmp_path / "run") == unbroken[0]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 24 megabytes, or skip the test if that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True)  # noqa: PLW1510
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_one_line_and_leaves_the_last_good_snapshot(tiny, learn, unbroken, small_disk):
    filler = small_disk / "filler"

    def fill(number):
        free = os.statvfs(small_disk)
        filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - number)))

    stopped = learn("disk/run", until=3)
    saved = (stopped / "snapshots" / "inca-000003.safetensors").read_bytes()
    fill(4096)
    with pytest.raises(BadFile, match=r"cannot be written: No space left on device: make room") as full:
        velatura.resume(tiny, stopped)
    assert "\n" not in str(full.value)
    assert "the last good snapshot is" in full.value.__notes__[0]
    assert (stopped / "snapshots" / "inca-000003.safetensors").read_bytes() == saved
    filler.unlink()
    velatura.resume(tiny, stopped)
    assert final(stopped) == unbroken[0]


def test_a_folder_that_became_read_only_is_one_line(tiny, learn, small_disk):
    stopped = learn("disk/run", until=1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(BadFile, match=r"log\.jsonl cannot be written: Read-only file system: allow writing there"):
        velatura.resume(tiny, stopped)
    with pytest.raises(BadFile, match=r"cannot be written: Read-only file system"):
        learn("disk/other")


REMEDIES = {errno.ENOSPC: "make room", errno.EROFS: "allow writing", errno.EACCES: "allow writing"}


@pytest.mark.parametrize("code", REMEDIES)
def test_whatever_keeps_a_run_from_writing_is_one_line(tiny, learn, unbroken, monkeypatch, code):
    stopped = learn(until=3)

    def refuse(path):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(log, "flush", refuse)
        with pytest.raises(BadFile, match=f"{os.strerror(code)}: {REMEDIES[code]}") as failed:
            velatura.resume(tiny, stopped)
    assert "the last good snapshot is" in failed.value.__notes__[0]
    velatura.resume(tiny, stopped)
    assert final(stopped) == unbroken[0]


def test_a_path_that_cannot_be_written_is_reported_before_the_run(tiny, learn, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadFile, match="cannot be written: Not a directory"):
        learn("file/run")


def test_other_overlays_on_the_base_are_refused_unless_asked_for(tiny, photos, tmp_path, hyper):
    other, overlay = hyper(), velatura.Hypernetwork.for_base(tiny, seed=3, name="inca")
    with velatura.attach(tiny, other):
        with pytest.raises(UnsupportedBase, match="detach all overlays"):
            velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "run")
        with pytest.raises(UnsupportedBase, match='plan the precision "float32"'):
            velatura.train(
                tiny, overlay, photos, PLAN.replace(precision="bfloat16"), out=tmp_path / "run", over_others=True
            )
        over = velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "over", over_others=True)
    alone = velatura.train(
        tiny, velatura.Hypernetwork.for_base(tiny, seed=3, name="inca"), photos, PLAN, out=tmp_path / "alone"
    )
    assert over.losses[0] != alone.losses[0]


def test_snapshots_are_kept_as_the_plan_says(learn):
    run = learn(steps=7, snapshot_every=1, keep_last=2, keep_every=3, validation_pictures=0)
    assert [snapshot.step for snapshot in RunFolder(run, "inca", None).snapshots] == [3, 6, 7]


def test_a_run_is_not_resumed_on_another_prediction_or_schedule(tiny, learn):
    stopped = learn(until=1)
    changed(stopped, base_prediction="v_prediction")
    with pytest.raises(WrongBase, match=r"predicts v_prediction.* \(--prediction v\)"):
        velatura.resume(tiny, stopped)
    changed(stopped, base_prediction="epsilon", base_zero_snr=True)
    with pytest.raises(WrongBase, match="--zero-snr"):
        velatura.resume(tiny, stopped)
