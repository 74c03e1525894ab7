"""The tab Train in a browser: from dropped pictures to the overlay in the prompt; stop and resume; what is mended."""

from __future__ import annotations

import inspect
import io
import re

import pytest
from PIL import Image

from tests.server.conftest import wait_for
from tests.server.page.conftest import until
from velatura.tiny import tiny_pictures
from velatura.training.run import verdict

MAX_STEPS = 2000  # of a training that is stopped
COLOURS = ("red", "blue", "green", "yellow")


def upload(count: int) -> list[dict[str, object]]:
    """Pictures of the bundled set, without their captions, as a browser sends them."""
    paths = sorted(tiny_pictures("neon").glob("*.png"))[:count]
    return [{"name": f"IMG_{path.name}", "mimeType": "image/png", "buffer": path.read_bytes()} for path in paths]


def set_number(page, label, value):
    page.get_by_label(label, exact=False).first.fill(str(value))


@pytest.fixture
def dataset(client):
    """A dataset of four pictures whose captions all have a word in common; the last picture is wide."""
    client.post("/api/datasets", json={"name": "street"})
    files = []
    for number, path in enumerate(sorted(tiny_pictures("neon").glob("*.png"))[:4]):
        image = Image.open(path)
        buffer = io.BytesIO()
        image.resize((128, 64) if number == 3 else image.size).save(buffer, "PNG")
        files += [
            ("files", (f"{number}.png", buffer.getvalue())),
            ("files", (f"{number}.txt", f"bulb, a {COLOURS[number]} house".encode())),
        ]
    client.post("/api/datasets/street/files", files=files)
    yield "street"
    client.delete("/api/datasets/street")
    client.delete("/api/datasets/street-64")


@pytest.mark.slow
def test_pictures_are_dropped_trained_on_and_used(open_page, client):
    page = open_page("#train")
    page.locator("#train-files").set_input_files(upload(4))
    page.get_by_text("captions were proposed").wait_for()
    captions = [box.input_value() for box in page.locator(".picture textarea").all()]
    assert len(captions) == 4
    assert all(captions)
    page.get_by_label("Kind", exact=True).select_option("lora")
    page.get_by_text("Steps, learning rate, previews").click()
    for label, value in {"Steps": 2, "Batch": 1, "Validation": 0, "Preview every": 2}.items():
        set_number(page, label, value)
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("button", name="Use now").wait_for()
    assert [image.get_attribute("alt") for image in page.locator(".preview img").all()] == [
        "Preview 1 after 0 steps",
        "Preview 1 after 2 steps",
    ]
    assert page.locator(".curves").get_attribute("aria-label").startswith("Loss: ")
    page.get_by_role("button", name="Use now").click()
    until(page, "(localStorage.getItem('velatura:paint') ?? '').includes('<lora:pictures:')")
    page.get_by_label("Steps", exact=True).locator("visible=true").fill("1")
    page.get_by_role("button", name="Paint", exact=True).click()
    page.locator(".effect", has_text="<lora:pictures:").wait_for()  # what it changed stands with the picture
    client.delete("/api/datasets/pictures")


def test_what_is_refused_stands_beside_its_field(open_page):
    page = open_page("#train")
    page.get_by_label("Set of pictures", exact=True).select_option("neon")
    page.get_by_text("Steps, learning rate, previews").click()
    page.get_by_label("Learning rate").fill("fast")
    page.get_by_role("button", name="Start training").click()
    field = page.locator('[data-field="learning_rate"]')
    field.locator(".error").filter(has_text="fast").wait_for()
    assert field.locator("input").get_attribute("aria-invalid") == "true"


def test_mirror_images_show_the_preset_and_are_left_out(open_page):
    page = open_page("#train")
    page.get_by_label("Set of pictures", exact=True).select_option("neon")
    page.get_by_label("Kind", exact=True).select_option("hypernet")
    choice = page.get_by_label("Mirror images")
    choice.get_by_text("preset: yes").wait_for(state="attached")
    page.get_by_text("16 pictures and 16 mirror images").wait_for()  # of the bundled set
    choice.focus()
    page.locator(".hint", has_text="Choose no for faces, writing").wait_for()
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/api/jobs")) as sent:
        choice.select_option("no")
    assert sent.value.post_data_json["plan"]["flip"] is False
    page.get_by_text("16 pictures, each seen").wait_for()
    page.get_by_label("Kind", exact=True).select_option("lora")
    choice.get_by_text("preset: no").wait_for(state="attached")
    assert choice.input_value() == "no"  # what was chosen stays
    page.get_by_label("Kind", exact=True).select_option("aesthetic")
    choice.wait_for(state="hidden")


@pytest.mark.slow
def test_a_training_is_stopped_and_resumed(open_page, client):
    plan = {"steps": MAX_STEPS, "batch_size": 1, "validation_pictures": 0, "end_sheet": False}
    request = {
        "kind": "train",
        "overlay": {"kind": "lora", "rank": 1},
        "dataset": "neon",
        "name": "halted",
        "plan": plan,
    }
    job = client.post("/api/jobs", json=request).json()
    page = open_page(f"#train?run={job['request']['run']}")
    page.locator(".train-run").get_by_text(re.compile(r"^Step \d+ of")).wait_for()
    page.get_by_role("button", name="Stop").click()
    resume = page.get_by_role("button", name="Resume")
    resume.wait_for()
    steps = client.get("/api/runs/halted").json()["steps"]
    assert 0 < steps < MAX_STEPS
    resume.click()
    number = "Number(/Step (\\d+)/.exec(document.querySelector('.train-run').textContent)?.[1])"
    until(page, f"steps => {number} > steps", steps)
    [resumed] = client.get("/api/jobs", params={"state": "running"}).json()["jobs"]
    client.post(f"/api/jobs/{resumed['id']}/cancel")
    wait_for(client, resumed["id"])


def test_flaws_of_pictures_are_mended_by_a_click(open_page, client, dataset):
    page = open_page("#train")
    page.get_by_label("Set of pictures", exact=True).select_option(dataset)
    page.get_by_role("button", name="Take “bulb” out of all captions").click()
    until(page, "[...document.querySelectorAll('.picture textarea')].every(box => !box.value.includes('bulb'))")
    frame = page.locator(".crop-box:visible")
    frame.wait_for()
    # half of the width of a picture of 128x64 pixels is kept
    assert frame.evaluate("box => [box.style.width, box.style.height]") == ["50%", "100%"]
    page.get_by_role("button", name="Crop all to 64 px").click()
    until(page, "document.querySelectorAll('.picture img[src*=\"/street-64/\"]').length === 4")
    files = client.get("/api/datasets/street-64").json()["files"]
    sizes = {
        Image.open(io.BytesIO(client.get(f"/api/datasets/street-64/files/{file['file']}").content)).size
        for file in files
    }
    assert sizes == {(64, 64)}
    box = page.get_by_label("Caption of", exact=False).first
    with page.expect_response(lambda answer: answer.request.method == "PUT"):
        box.fill("a green house")
        box.blur()
    assert "a green house" in {file["caption"] for file in client.get("/api/datasets/street-64").json()["files"]}


def test_the_page_knows_the_labels_of_a_verdict(blank):
    labels = set(re.findall(r'yield "([^"]+)"', inspect.getsource(verdict)))
    known = blank.evaluate("import('/page/train/run.js').then((module) => module.VERDICT_LABELS)")
    pattern = blank.evaluate("import('/page/train/run.js').then((module) => module.FOR_TERMINALS.source)")
    in_terminals = {"look at", "losses", "best snapshot", "paint and look", "for A1111"}  # with paths and commands
    assert labels == set(known) | in_terminals
    commands = ["look at a.png", "paint and look velatura grid x", "for A1111 velatura convert x"]
    assert all(re.search(pattern, line) for line in commands)


def test_an_overlay_that_overpowers_the_prompt_is_used_at_the_milder_strength(open_page):
    run = {
        "run": "loud",
        "name": "loud",
        "state": "finished",
        "kind": "hypernet",
        "base": "tiny",
        "steps": 8,
        "planned_steps": 8,
        "seconds": 60,
        "validation": {},
        "best_step": None,
        "rescues": [],
        "snapshots": [8],
        "previews": {},
        "strength": None,
        "milder_strength": 0.6,
        "tag": "<hypernet:loud:1>",
        "verdict": [],
    }
    page = open_page("#info")
    page.locator("#panel-info .drop").wait_for()
    page.route("**/api/runs", lambda route: route.fulfill(json=[run]))
    page.route("**/api/runs/loud/losses*", lambda route: route.fulfill(json={"steps": [], "losses": []}))
    page.evaluate("location.hash = '#train?run=loud'")
    page.get_by_role("button", name="Use now").click()
    until(page, "(localStorage.getItem('velatura:paint') ?? '').includes('<hypernet:loud:0.6>')")
