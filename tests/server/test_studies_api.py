"""Jobs that compare kinds and find strengths, their results, and a report that a frame of the page may show."""

import json
import re

import pytest

import velatura
from tests.server.conftest import wait_for
from velatura.server.jobs import context as context_module
from velatura.studies import study as study_module
from velatura.studies.results import Curve, Trial
from velatura.training.run.report import Stage

CURVE = Curve(strengths=(0.0, 1.0), likeness=(0.0, 0.5), kept=(1.0, 0.8))


def fake_trial(setup, kind, seed, steps, on_stage=None):
    """Save an untrained LoRA in place of half a minute of training and judging."""
    if on_stage:
        on_stage(Stage("training", 1, 1))
    file = setup.folder / "trials" / f"{kind}-{seed}" / f"{setup.name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    velatura.save(velatura.Lora.for_base(setup.base, rank=1, name=setup.name), file)
    figures = {"score": 0.4 + seed / 10, "likeness": 0.5, "kept": 0.8, "strength": 1.0, "training_seconds": 1.0}
    if setup.other is not None:
        figures |= {"together": setup.other.strength / 2, "other_left": 0.9}
    return Trial(
        kind=kind,
        seed=seed,
        file=str(file.relative_to(setup.folder)),
        steps=steps,
        command=f"velatura train {kind} {setup.data}",
        figures=figures,
        curve=CURVE,
    )


@pytest.fixture
def quick(monkeypatch):
    """Replace trials by quick ones, and count them."""
    done: list[tuple[str, int]] = []

    def run_trial(setup, kind, seed, steps, on_stage=None):
        done.append((kind, seed))
        return fake_trial(setup, kind, seed, steps, on_stage)

    monkeypatch.setattr(study_module, "run_trial", run_trial)
    monkeypatch.setattr(study_module.StudyReport, "page", fake_page)
    return done


def fake_page(self, results):
    """A report with what the real one has: a style, a link to a file, and a command with a path."""
    command = results.trials[0].command
    return f'<style>p {{ color: red }}</style><a href="trials/x.safetensors">x</a><pre>{command}</pre>'


def submit(client, **request):
    answer = client.post("/api/jobs", json=request)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_study_is_made_listed_and_reported(client, state, quick):
    job = submit(client, kind="compare", dataset="neon", study="which", kinds=["lora", "hypernet"], seeds=2, steps=1)
    job = wait_for(client, job["id"])
    assert job["state"] == "done", job["error"]
    assert quick == [("lora", 0), ("hypernet", 0), ("lora", 1), ("hypernet", 1)]
    found = client.get("/api/studies/which").json()
    assert found == {key: value for key, value in job["result"].items() if key != "kind"}
    assert (found["trials"], {row["kind"] for row in found["kinds"]}) == (4, {"lora", "hypernet"})
    assert found["kinds"][0]["score"] == "0.45 ± 0.07"  # mean and sample deviation of 0.4 and 0.5, by hand
    assert found["recommendation"]
    assert found["together"] is None
    assert "which" in {study["study"] for study in client.get("/api/studies").json()}


def test_a_study_measures_kinds_beside_another_overlay_of_the_library(client, quick):
    request = {"kind": "compare", "dataset": "neon", "study": "beside", "kinds": ["lora"], "seeds": 1, "steps": 1}
    other = {"name": "ink", "strength": 0.6}
    job = wait_for(client, submit(client, **request, together=other)["id"])
    assert (job["state"], job["request"]["together"]) == ("done", other), job["error"]
    study = client.get("/api/studies/beside").json()
    [row] = study["kinds"]
    assert study["together"] == "ink.safetensors at 0.6"
    assert (row["together"], row["other_left"]) == ("0.30", "0.90")  # as `fake_trial` has them
    job = wait_for(client, submit(client, **request)["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "already_exists")  # its figures would not be comparable
    assert "--together (ink.safetensors" in job["error"]["message"]
    assert "(on a server, another name)" in job["error"]["message"]


@pytest.fixture
def foreign(models, xl):
    """The name of a LoRA of the library for another family of bases."""
    path = models / "foreign.safetensors"
    velatura.save(velatura.Lora.for_base(xl, rank=1), path)
    yield "foreign"
    path.unlink()


def test_another_overlay_that_cannot_be_used_ends_a_study_before_it_trains(client, state, quick, models, foreign):
    request = {"kind": "compare", "dataset": "neon", "study": "never", "kinds": ["lora"], "seeds": 1, "steps": 1}
    names = {"nobody": "unknown_name", "/etc/passwd": "unknown_name", foreign: "wrong_base"}
    for name, code in names.items():
        job = wait_for(client, submit(client, **request, together={"name": name})["id"])
        assert (job["state"], job["error"]["code"]) == ("failed", code)
        assert len(job["error"]["message"].splitlines()) == 1
        assert str(models) not in job["error"]["message"]
    assert quick == []
    assert not (state.folders.studies / "never").exists()


def test_a_trial_that_is_stored_resets_the_starts(client, quick, monkeypatch):
    stored = []
    monkeypatch.setattr(context_module.JobContext, "mark_stored", lambda context: stored.append(context.job.kind))
    wait_for(client, submit(client, kind="compare", dataset="neon", kinds=["lora", "hypernet"], seeds=1, steps=1)["id"])
    assert stored == ["compare"]  # before the second trial; behind that one the job ends


def test_the_report_runs_nothing_and_tells_no_path(client, state, quick):
    wait_for(
        client, submit(client, kind="compare", dataset="neon", study="told", kinds=["lora"], seeds=1, steps=1)["id"]
    )
    answer = client.get("/api/studies/told/report")
    policy = answer.headers["content-security-policy"]
    assert {"default-src 'none'", "sandbox", "frame-ancestors 'self'"} <= set(policy.split("; "))
    assert "script" not in policy
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert str(state.folders.out) not in answer.text
    assert "<pre>velatura train lora told/pictures/neon</pre>" in answer.text
    assert re.findall("href", answer.text) == []
    for name in ("nowhere", "../runs", ".."):
        assert client.get(f"/api/studies/{name}/report").status_code == 404


def test_a_cancelled_study_goes_on_where_it_was(client, state, quick, monkeypatch):
    stop = {"at": ("hypernet", 0)}

    def run_trial(setup, kind, seed, steps, on_stage=None):
        if (kind, seed) == stop["at"]:
            [job] = client.get("/api/jobs", params={"state": "running"}).json()["jobs"]
            client.post(f"/api/jobs/{job['id']}/cancel")
            on_stage(Stage("training", 1, 2))  # where it ends
        quick.append((kind, seed))
        return fake_trial(setup, kind, seed, steps)

    monkeypatch.setattr(study_module, "run_trial", run_trial)
    request = {
        "kind": "compare",
        "dataset": "neon",
        "study": "halted",
        "kinds": ["lora", "hypernet"],
        "seeds": 1,
        "steps": 1,
    }
    assert wait_for(client, submit(client, **request)["id"])["state"] == "cancelled"
    assert client.get("/api/studies/halted").json()["trials"] == 1
    stop["at"] = None
    assert wait_for(client, submit(client, **request)["id"])["result"]["trials"] == 2
    assert quick == [("lora", 0), ("hypernet", 0)]


def test_a_study_that_the_end_of_the_server_interrupts_is_queued_again(client, state, quick, monkeypatch):
    asked: list[bool] = []

    def check(self):
        if self.job.kind == "compare" and not asked:
            asked.append(True)
            raise context_module.JobStopped  # as when the server ends
        return original(self)

    original = context_module.JobContext.check
    monkeypatch.setattr(context_module.JobContext, "check", check)
    job = submit(client, kind="compare", dataset="neon", study="again", kinds=["lora"], seeds=1, steps=1)
    job = wait_for(client, job["id"])
    assert (job["state"], job["result"]["trials"], asked) == ("done", 1, [True])
    events = [event.type for event in state.jobs.events.after(0, job["id"])]
    assert events.count("interrupted") == 1


def test_the_strength_of_an_overlay_is_found_and_written_beside_it(client, models):
    request = {"kind": "tune", "overlay": "ink", "steps": 1, "prompts": ["a red house", "a blue cat"]}
    job = wait_for(client, submit(client, **request)["id"])
    assert job["state"] == "done", job["error"]
    result = job["result"]
    assert result["low"] <= result["strength"] <= result["high"]
    assert [point["strength"] for point in result["points"]] == [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4]
    sidecar = models / "ink.json"
    assert json.loads(sidecar.read_text())["preferred weight"] == result["strength"]
    sidecar.unlink()
    client.post("/api/library/refresh")


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        ({"kind": "compare", "dataset": "nowhere"}, 404, None),
        ({"kind": "compare", "dataset": "neon", "study": "../x"}, 422, "study"),
        ({"kind": "compare", "dataset": "neon", "steps": 2, "minutes": 3}, 422, "steps"),
        ({"kind": "compare", "dataset": "neon", "kinds": ["knitting"]}, 422, "kinds.0"),
        ({"kind": "compare", "dataset": "neon", "minutes": 0}, 422, "minutes"),
        ({"kind": "compare", "dataset": "neon", "together": {"name": "ink", "strength": 0}}, 422, "together.strength"),
        ({"kind": "compare", "dataset": "neon", "together": {"name": "ink", "text": 1}}, 422, "together.text"),
        ({"kind": "compare", "dataset": "neon", "together": "ink"}, 422, "together"),
        ({"kind": "tune", "overlay": "ink", "dataset": "../.."}, 404, None),
        ({"kind": "tune", "overlay": "ink", "prompts": ["a house"]}, 422, "prompts"),
    ],
)
def test_studies_that_cannot_be_made_are_refused(client, request_, status, field):
    answer = client.post("/api/jobs", json=request_)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
