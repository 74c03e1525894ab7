"""Hostile requests: none is answered with a server error, a path or a traceback."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from tests.server.a1111.conftest import SMALL, to_base64


def png_bomb(width, height):
    """Return a small PNG file that says it has many pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def text_bomb():
    """Return a PNG whose text chunk inflates to many megabytes."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", "a" * 100_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    return base64.b64encode(buffer.getvalue()).decode()


GIF = base64.b64encode(b"GIF89a" + b"\0" * 50).decode()
SVG = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>").decode()
BAD_IMAGES = {
    "empty": "",
    "not base64": "%%%",
    "no image": base64.b64encode(b"hello").decode(),
    "cut": to_base64(Image.new("RGB", (64, 64)))[:60],
    "60000 x 60000": png_bomb(60_000, 60_000),
    "10000 x 10000": png_bomb(10_000, 10_000),
    "0 x 5": png_bomb(0, 5),
    "gif": GIF,
    "svg": SVG,
    "long": "A" * 3_000_001,
    "path": "/etc/passwd",
    "address": "http://169.254.169.254/latest/meta-data",
    "file address": "file:///etc/passwd",
    "reference": "input:" + "0" * 64 + ".png",
    "reference out": "input:../../velatura.sqlite",
    "null byte": "\0",
    "surrogate": "\ud800",
}
WRONG = [None, True, -1, 10**30, 1.5, "", "\0", "\ud800", "../../etc/passwd", [[]], {"a": {}}]
FIELDS = [
    "prompt",
    "negative_prompt",
    "styles",
    "seed",
    "subseed",
    "subseed_strength",
    "seed_resize_from_h",
    "sampler_name",
    "sampler_index",
    "scheduler",
    "batch_size",
    "n_iter",
    "steps",
    "cfg_scale",
    "width",
    "height",
    "tiling",
    "eta",
    "denoising_strength",
    "s_min_uncond",
    "s_churn",
    "s_tmax",
    "override_settings",
    "script_name",
    "script_args",
    "alwayson_scripts",
    "infotext",
    "enable_hr",
    "hr_scale",
    "hr_upscaler",
    "hr_resize_x",
    "hr_second_pass_steps",
    "hr_sampler_name",
    "hr_scheduler",
    "force_task_id",
    "comments",
    "refiner_switch_at",
    "unknown_field",
]


def check(answer):
    """Check that an answer is not a server error, and tells nothing of the machine."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert "Traceback" not in answer.text
        assert "/tmp/" not in answer.text
        assert "site-packages" not in answer.text
    return answer


def post(client, route, body):
    """Post JSON as Python writes it, with NaN and lone surrogates."""
    data = json.dumps(body).encode()
    return check(client.post(f"/sdapi/v1/{route}", content=data, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("field", FIELDS)
def test_wrong_values_of_a_field(client, field):
    for value in [*WRONG, float("nan"), "(" * 2000]:
        post(client, "txt2img", {**SMALL, "send_images": False, "height": 8, "width": 8, field: value})


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_everywhere(client, name):
    image = BAD_IMAGES[name]
    good = to_base64(Image.new("RGB", (64, 64)))
    answers = [
        post(client, "img2img", {**SMALL, "init_images": [image]}),
        post(client, "img2img", {**SMALL, "init_images": [good], "mask": image}),
        post(client, "extra-single-image", {"image": image, "upscaler_1": "Lanczos"}),
        post(client, "extra-batch-images", {"imageList": [{"data": image, "name": "../x"}], "upscaler_1": "Lanczos"}),
        post(client, "interrogate", {"image": image}),
    ]
    assert {answer.status_code for answer in answers} <= {404, 413, 422}
    post(client, "png-info", {"image": image})


def test_images_with_much_text_or_few_pixels(client):
    assert post(client, "png-info", {"image": text_bomb()}).status_code in {200, 413, 422}
    for size in ((1, 1), (1, 300)):
        image = to_base64(Image.new("RGB", size))
        for mode in (0, 1):
            post(client, "extra-single-image", {"image": image, "upscaler_1": "Lanczos", "resize_mode": mode})
        post(client, "img2img", {**SMALL, "init_images": [image], "mask": image})
    body = {"image": to_base64(Image.new("RGB", (1000, 1000))), "upscaler_1": "Lanczos", "upscaling_resize": 8}
    assert post(client, "extra-single-image", body).status_code == 413
    body |= {"resize_mode": 1, "upscaling_resize_w": 10**9, "upscaling_resize_h": 10**9}
    assert post(client, "extra-single-image", body).status_code == 413


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_images_of_every_mode(client, mode):
    image = to_base64(Image.new("L", (64, 64), 255).convert(mode))
    for fields in ({"init_images": [image]}, {"init_images": [image], "mask": image}):
        assert post(client, "img2img", {**SMALL, **fields}).status_code == 200
    assert post(client, "extra-single-image", {"image": image, "upscaler_1": "Lanczos"}).status_code == 200


ROUTES = [
    "txt2img",
    "img2img",
    "extra-single-image",
    "extra-batch-images",
    "png-info",
    "interrogate",
    "options",
    "create/embedding",
    "create/hypernetwork",
    "train/embedding",
    "train/hypernetwork",
    "checkpoint-merger",
]
DEEP = b'{"script_args":' + b"[" * 9000 + b"]" * 9000 + b"}"
BODIES = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"3",
    b"{",
    b'{"a":',
    b"\xff\xfe",
    b"[" * 20_000,
    DEEP,
    b"NaN",
]


@pytest.mark.parametrize("route", ROUTES)
def test_bodies_that_are_no_request(client, route):
    for body in BODIES:
        for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
            answer = check(client.post(f"/sdapi/v1/{route}", content=body, headers={"Content-Type": kind}))
            assert answer.status_code >= 400
            assert answer.json().keys() == {"error", "detail", "body", "errors"}


@pytest.mark.parametrize("route", [route for route in ROUTES if "/" in route or route == "checkpoint-merger"])
def test_wrong_values_of_file_routes(client, route):
    names = {"name": "x", "embedding_name": "x", "hypernetwork_name": "x", "data_root": "x", "primary_model_name": "x"}
    fields = "name learn_rate layer_structure dropout_structure enable_sizes data_root steps template_filename"
    fields += " num_vectors_per_token interp_method multiplier discard_weights metadata_json config_source bake_in_vae"
    for field in fields.split():
        for value in WRONG:
            given = {**names, "use_dropout": True, field: value}
            if field in {"name", "num_vectors_per_token"} and route.startswith("create"):
                given["init_text"] = "\ud800"
            if "create/hypernetwork" in route and field not in {"name", "layer_structure", "enable_sizes"}:
                continue
            post(client, route, {**given, "overwrite_old": True})


def test_wrong_settings(client, state):
    names = list(client.get("/sdapi/v1/options").json())
    for name in names:
        for value in (10**30, float("nan"), "../../etc/passwd", [[]]):
            post(client, "options", {name: value})
        post(client, "txt2img", {**SMALL, "steps": 0, "override_settings": {name: [1]}})
    for name in state.options.all():
        state.options.reset(name)
    post(client, "options", {"x" * 10_000: 1, "\ud800": 2, 'a"\r\nSet-Cookie: x=y': 3})
    assert client.get("/sdapi/v1/options").status_code == 200


PATHS = [
    "/file=/etc/passwd",
    "/file=../../../../etc/passwd",
    "/file=%2e%2e/velatura.sqlite",
    "/file=..%5c..%5cx",
    "/file=~/.ssh/id_rsa",
    "/file=%00",
    "/file=file:///etc/passwd",
    "/file=//etc/passwd",
    "/file=",
    "/file=.",
    "/file=CON",
    "/sd_extra_networks/thumb?filename=/etc/passwd",
    "/sd_extra_networks/thumb?filename=..%2f..%2fetc%2fpasswd",
    "/sd_extra_networks/thumb?filename=%00",
    "/sd_extra_networks/metadata?page=lora&item=../../x",
    "/sd_extra_networks/get-single-card?page=lora&name=%3Cscript%3E",
    "/sdapi/v1/../../etc/passwd",
    "/sdapi/v1/nothing",
    "/sdapi/v1/server-kill",
    "/sdapi/v1/txt2img/../../x",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_out(client, path):
    answer = check(client.get(path))
    assert b"root:" not in answer.content
    assert b"SQLite" not in answer.content
    assert answer.status_code in {200, 404, 422}
    if "/file=" in path or "thumb" in path or "/sdapi" in path:
        assert answer.status_code == 404


def test_methods_that_a_route_does_not_have(client):
    for route in ROUTES:
        for method in ("DELETE", "PUT", "PATCH"):
            assert check(client.request(method, f"/sdapi/v1/{route}")).status_code == 405


@pytest.mark.parametrize(
    "body", [{"id_task": 5}, {"id_live_preview": "x"}, {"id_task": "x" * 100_000}, []], ids=range(4)
)
def test_wrong_questions_of_tasks(client, body):
    check(client.post("/internal/progress", json=body))
