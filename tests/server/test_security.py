"""Who may come in, and what hostile requests get: never a 5xx, a path, a traceback or a file from outside."""

import asyncio
import base64
import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

import velatura
from tests.server.conftest import HOST, open_client, paint
from velatura.base.families import FAMILIES
from velatura.errors import BadSettings
from velatura.server import limits
from velatura.server.errors import ApiError, hide_paths
from velatura.server.folders import check_name, resolve_inside
from velatura.server.jobs.prepare import check_size
from velatura.server.settings import ServerSettings

EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, models):
    """Return a function that opens a server which is asked only what needs no base."""
    number = iter(range(100))

    def open_guarded(**fields):
        out = tmp_path_factory.mktemp(f"guarded{next(number)}")
        client = open_client(ServerSettings.of(library=(models,), out=out, **fields))
        client.app.router.lifespan_context = None  # no workers: the queue only fills
        return client

    return open_guarded


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost:9999", 200),
        ("[::1]:7860", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("localhost.evil.example:7860", 403),
        ("192.168.0.7:7860", 403),
        ("127.0.0.1@evil.example", 403),
        ("localhost/evil.example", 403),
        ("localhost:port", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_hosts(client, host, status):
    assert client.get("/internal/ping", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": f"http://{HOST}"}, 200),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": f"http://{HOST}.evil.example"}, 403),
        ({"Origin": f"{HOST}"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_of_other_origins_may_not_ask(client, headers, status):
    answer = client.get("/api/jobs", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_a_named_origin_may_ask(guarded):
    client = guarded(origins=("http://page.example:8000",))
    origin = {"Origin": "http://page.example:8000"}
    preflight = client.options("/api/jobs", headers=origin | {"Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
    assert client.get("/api/jobs", headers=origin).headers["access-control-allow-origin"] == origin["Origin"]
    refused = client.options("/api/jobs", headers={"Origin": EVIL, "Access-Control-Request-Method": "POST"})
    assert refused.status_code == 403


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (basic("me:secret"), 200),
        (basic("me:secret2"), 401),
        (basic("you:secret"), 401),
        (basic("me:"), 401),
        ({}, 401),
        ({"Authorization": "Basic"}, 401),
        ({"Authorization": "Basic ä".encode("latin-1")}, 401),
        ({"Authorization": "Basic !!!!"}, 401),
        ({"Authorization": "Bearer me:secret"}, 401),
    ],
)
def test_a_password_is_asked_for(guarded, headers, status):
    client = guarded(auth="me:secret", listen=True)
    answer = client.get("/api/jobs", headers=headers)
    assert answer.status_code == status
    assert client.get("/internal/ping").status_code == 200
    assert "secret" not in answer.text


def test_a_token_opens_as_query_header_and_cookie(guarded):
    client = guarded(token="abc", listen=True)
    assert client.get("/api/jobs").status_code == 401
    assert client.get("/api/jobs?token=abd").status_code == 401
    assert client.get("/api/jobs?token=abc").status_code == 200
    assert client.get("/api/jobs", headers={"Authorization": "Bearer abc"}).status_code == 200
    cookie = client.get("/?token=abc").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.get("/api/jobs", headers={"Cookie": cookie.split(";")[0]}).status_code == 200


def test_an_address_is_a_host_only_where_others_may_come_in(guarded):
    client = guarded(token="abc", listen=True)
    headers = {"Host": "192.168.0.7:7860", "Authorization": "Bearer abc"}
    assert client.get("/api/jobs", headers=headers).status_code == 200
    assert client.get("/api/jobs", headers=headers | {"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "0.0.0.0"},
        {"host": "example.org"},
        {"listen": True},
        {"auth": "nobody"},
        {"auth": ":secret"},
        {"origins": ("example.org",)},
        {"origins": ("http://example.org/page",)},
        {"port": 70000},
        {"batch": 0},
        {"colour": "red"},
    ],
)
def test_settings_that_contradict_themselves_are_refused(fields):
    with pytest.raises(BadSettings, match=r"[:;] "):
        ServerSettings.of(**fields)


def test_bodies_are_bounded_whether_they_say_their_size_or_not(guarded):
    client = guarded(max_body_bytes=2048)
    assert client.post("/api/jobs", content=b"x" * 3000).status_code == 413
    assert client.post("/api/jobs", content=(b"x" * 1000 for _ in range(3))).status_code == 413
    assert client.post("/api/jobs", content=b"{}", headers={"Content-Length": "9" * 30}).status_code == 413
    assert client.post("/api/jobs", content=b"{}").status_code == 422


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "PART_SECONDS", 0.01)
    sent = []

    async def application(_scope, receive, _send):
        await receive()

    async def never():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/api/jobs", "headers": [(b"content-length", b"9")]}
    # in a thread of its own: a browser's tests in the same process leave their event loop running
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(limits.BodyLimit(application, ServerSettings())(scope, never, send))).result()
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 101},
        {"recipe": {"width": 4096, "height": 4096}},
        {"recipe": {"width": 512, "height": 512, "hires_scale": 8}},
        {"recipe": {"hires_size": "4096x0"}},
    ],
)
def test_jobs_beyond_a_limit_are_answered_with_413(client, fields):
    request = {"kind": "paint", "recipe": {"prompt": "a house"}} | fields
    assert client.post("/api/jobs", json=request).status_code == 413


def bomb(side=40000):
    """A PNG of a few kilobytes with side x side pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((side // 8 + 1) * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image(size=(16, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


def large_grids():
    """Yield fields of grids with too many pictures, or with one that is too large by its axes together."""
    axis = {"name": "seed", "values": list(range(200))}
    yield {"x": axis, "y": axis}
    for bars in (60, 20_000):
        yield {"recipe": {"prompt": "a" + "|b" * bars}, "matrix": True}
    width, height, scale = (
        {"name": name, "values": [value]} for name, value in (("width", 4096), ("height", 4096), ("hires_scale", 4.0))
    )
    yield {"x": width, "y": height}
    yield {"x": width, "z": scale}


def hostile_requests():
    """Yield method, path and arguments of requests that nobody sends in good faith."""
    outside = [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "....//etc/passwd",
        "a%00b",
    ]
    for name in (*outside, "..", "%2e%2e", "~", "C:%5CWindows", "x" * 5000, "\u202e", "neon/../../../etc"):
        yield "GET", f"/api/datasets/{name}", {}
        yield "GET", f"/api/datasets/neon/files/{name}", {}
        yield "GET", f"/api/runs/{name}", {}
        yield "GET", f"/api/library/{name}", {}
        yield "GET", f"/api/jobs/{name}", {}
        yield "DELETE", f"/api/datasets/{name}", {}
        yield "POST", "/api/datasets", {"json": {"name": name}}
    for picture in ("0", "-1", "1e9", str(2**64), "9" * 400, "null", "1;DROP TABLE jobs"):
        yield "GET", f"/api/pictures/{picture}/file", {}
    bodies = [b"", b"null", b"[]", b"{", b'{"kind":', b"\xff\xfe", b'{"kind": NaN}', b"[" * 20000, b'{"kind":"paint"}']
    bodies += [b'{"kind":"paint","recipe":{"guidance":NaN}}', b'{"kind":"paint","recipe":{"guidance":1e999}}']
    bodies += [b'{"kind":"paint","recipe":null}', b'{"kind":"paint","recipes":[]}', b'{"kind":["paint"]}']
    for body in bodies:
        yield "POST", "/api/jobs", {"content": body, "headers": {"Content-Type": "application/json"}}
    recipes: list[object] = [
        {"steps": 10**9},
        {"width": 10**9},
        {"width": 8192, "height": 8192},
        {"hires_scale": 16},
        {"hires_size": "8000x0"},
        {"width": 64, "height": 2048, "hires_size": "2048x0"},
        {"width": 64, "height": 2048, "hires_size": "2048x64"},
        {"seed": 10**30},
        {"prompt": 7},
        {"prompt": "\ud800"},
        {"prompt": "<lora:" * 20000},
        {"sampler": {"a": 1}},
        [1],
        "x",
    ]
    for recipe in recipes:
        yield "POST", "/api/jobs", {"content": json.dumps({"kind": "paint", "recipe": recipe})}
    pictures = [image((64, 64))[:60], b"", b"GIF89a", bomb(), b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n"]
    for data in (*map(base64.b64encode, pictures), b"!!!", b"http://127.0.0.1/x.png", b"file:///etc/passwd"):
        request = {"kind": "paint", "recipe": {"prompt": "a"}, "image": data.decode()}
        yield "POST", "/api/jobs", {"json": request}
    yield "POST", "/api/jobs", {"json": {"kind": "paint", "recipe": {}, "image": "input:" + "0" * 64 + ".png"}}
    yield "POST", "/api/jobs", {"json": {"kind": "paint", "recipe": {}, "image": "input:../../../etc/passwd"}}
    yield "POST", "/api/jobs", {"json": {"kind": "paint", "recipe": {}, "count": 10**9}}
    for grid in large_grids():
        yield "POST", "/api/jobs", {"json": {"kind": "grid", "recipe": {"prompt": "a", "steps": 1}} | grid}
    yield (
        "POST",
        "/api/jobs",
        {"json": {"kind": "train", "overlay": {"kind": "lora", "rank": 10**9}, "dataset": "neon"}},
    )
    plan = {"validation_folder": "/etc"}
    yield "POST", "/api/jobs", {"json": {"kind": "train", "overlay": {"kind": "lora"}, "dataset": "neon", "plan": plan}}
    yield "POST", "/api/jobs", {"json": {"kind": "caption", "dataset": "neon", "captioner": "/etc"}}
    for source in ("file:///etc/passwd", "http://169.254.169.254/", "https://localhost/", "/etc/passwd"):
        yield "POST", "/api/jobs", {"json": {"kind": "pull", "source": source}}
    for ids in ("-5", "abc", "9" * 50, "1\r\nX: 1"):
        yield "GET", "/api/jobs", {"params": {"before": ids}}
    yield "GET", "/api/jobs", {"params": {"limit": 10**9}}
    yield "POST", "/api/datasets/neon/files", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}
    broken = {"Content-Type": "multipart/form-data; boundary=a"}
    yield (
        "POST",
        "/api/datasets/neon/files",
        {"content": b"--a\r\nContent-Disposition: form-data\r\n", "headers": broken},
    )
    for method in ("PUT", "DELETE", "TRACE", "PROPFIND"):
        yield method, "/api/jobs", {}


def test_hostile_requests_are_refused_in_one_line(client, state):
    requests = list(hostile_requests())
    assert len(requests) > 100
    queued = []
    for method, path, arguments in requests:
        answer = client.request(method, path, **arguments)
        told = (method, path[:80], str(arguments)[:120], answer.status_code, answer.text[:300])
        assert 200 <= answer.status_code < 500, told
        if answer.status_code == 202:
            queued.append(told)
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert error["message"], told
            assert "\n" not in error["message"], told
        for secret in ("Traceback", "site-packages", "root:x:", str(state.folders.out), "/velatura/", "sqlite"):
            assert secret not in answer.text, told
    assert queued == []
    assert paint(client)["state"] == "done"


def test_a_link_does_not_lead_out_of_a_dataset(client, state, tmp_path):
    folder = state.folders.datasets / "linked"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "secret.png").symlink_to(tmp_path / "secret.png")
    assert client.get("/api/datasets/linked/files/secret.png").status_code == 404
    (state.folders.datasets / "elsewhere").symlink_to(tmp_path)
    assert client.get("/api/datasets/elsewhere").status_code == 404
    (state.folders.datasets / "elsewhere").unlink()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a\0", ".hidden", "con", "COM1.png", "a ", "x" * 101, "é"]
)
def test_names_of_new_files_are_plain(name):
    with pytest.raises(Exception, match="choose another"):
        check_name(name)


def test_paths_resolve_inside_their_folder(tmp_path):
    root = (tmp_path / "root").resolve()
    (root / "a").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    assert resolve_inside(root, "a") == root / "a"
    for name in ("", ".", "..", "../b", str(tmp_path / "b"), "a/../../b", "c", "a\0"):
        with pytest.raises(Exception, match="list them"):
            resolve_inside(root, name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/models/ink.pt is damaged: get it again", "ink.pt is damaged: get it again"),
        ("'/a b/c.png' is gone", "'c.png' is gone"),
        ("write it as a/b, or and/or", "write it as a/b, or and/or"),
        ("see https://example.org/a/b: it says why", "see https://example.org/a/b: it says why"),
        (r"C:\Users\me\ink.pt is damaged", "ink.pt is damaged"),
        ("first\n  second\n", "first second"),
        ("result   the overlay of /home/me/runs/ink.pt", "result   the overlay of ink.pt"),
        ("1/2 of 3 / 4", "1/2 of 3 / 4"),
    ],
)
def test_paths_are_hidden_in_messages(text, expected):
    assert hide_paths(text) == expected


def test_a_method_that_an_address_does_not_have_is_answered_with_all_that_it_has(client):
    answer = client.options("/api/datasets/neon")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")


def test_the_openapi_document_says_what_errors_look_like(client):
    paths = client.get("/api/openapi.json").json()["paths"]
    for path, shape in {"/api/jobs": "ErrorAnswer", "/sdapi/v1/txt2img": "A1111ErrorAnswer"}.items():
        for status in ("404", "413", "422", "429"):
            [content] = paths[path]["post"]["responses"][status]["content"].values()
            assert content["schema"]["$ref"].endswith(f"/{shape}")


def test_the_openapi_document_says_that_null_stands_for_a1111s_defaults(client):
    fields = client.get("/api/openapi.json").json()["components"]["schemas"]["Txt2ImgRequest"]["properties"]
    assert all({"type": "null"} in field["anyOf"] for field in fields.values())


def test_a_picture_of_the_size_of_its_base_is_within_the_limit_too(state):
    """Which size that is turns out when the base is open: of SDXL four times the pixels of SD1."""
    recipe = velatura.Recipe(prompt="a", hires_scale=4.0)
    check_size(recipe, state.settings)
    with pytest.raises(ApiError, match="16,777,216 pixels"):
        check_size(recipe, state.settings, FAMILIES["SDXL"].default_pixels)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sdapi/v1/txt2img", '{"prompt": "a", "steps": 1, "steps": 2}'),
        ("/sdapi/v1/txt2img", '{"override_settings": {"steps": 0, "steps": 1}}'),
        ("/api/jobs", '{"kind": "paint", "recipe": {"prompt": "a", "steps": 1, "steps": 2}}'),
        ("/api/jobs", '{"kind": "paint", "recipes": [{"prompt": "a"}, {"steps": 1, "\\u0073teps": 2}]}'),
    ],
)
def test_a_body_with_a_key_twice_is_refused(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "it has the key 'steps' twice in one object: send every key once" in answer.text


def test_a_number_of_too_many_digits_is_not_called_a_key_that_is_there_twice(client):
    answer = client.post("/sdapi/v1/options", content="1" * 5000, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert "ambiguous" not in answer.text


def test_uploads_are_not_looked_through_for_keys(client):
    twice = b'{"a": 1, "a": 2}'
    client.post("/api/datasets", json={"name": "twice"})
    answer = client.post("/api/datasets/twice/files", files=[("files", ("a.txt", twice))])
    assert answer.status_code == 200, answer.text
    assert client.delete("/api/datasets/twice").status_code == 204
    plain = client.post("/api/inputs", content=twice, headers={"Content-Type": "image/png"})
    assert (plain.status_code, plain.json()["error"]["code"]) == (422, "bad_image")
