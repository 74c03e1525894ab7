"""Strangers' servers are asked patiently, followed carefully, and shown a token only where it belongs."""

import json
from email.utils import formatdate

import httpx2
import pytest

from tests.downloads.server import Server, in_turn, redirect, serving, status
from velatura.downloads.services import Service, Services
from velatura.downloads.web_client import MAX_JSON_BYTES, WebClient, parse_url, public_url, redirect_target
from velatura.errors import BadFile, DownloadFailed

THERE = "/files/ink.safetensors"
NOW = 1_000_000_000.0  # of the clock that stands still


@pytest.fixture
def other():
    """A second server, of a stranger."""
    with serving() as other_server:
        yield other_server


def body(web, url):
    with web.stream(url) as response:
        return b"".join(response.iter_raw())


def test_redirects_are_followed(server, web, lora):
    server.offers("/real.safetensors", lora)
    server.replies["/once"] = redirect("/twice", 301)
    server.replies["/twice"] = redirect(server.root + "/real.safetensors", 307)
    assert body(web, server.root + "/once") == lora


def test_a_token_is_shown_to_its_service_and_to_no_other(server, other, web, lora):
    server.replies["/api/file"] = redirect(other.offers(THERE, lora))
    assert body(web, server.root + "/api/file") == lora
    assert server.asked[0][1]["Authorization"] == "Bearer secret-c"
    assert "Authorization" not in other.asked[0][1]


def test_a_password_in_an_address_stays_with_its_server(server, other, web, lora):
    server.replies["/file"] = redirect(other.offers(THERE, lora))
    assert body(web, server.root.replace("//", "//me:hush@") + "/file") == lora
    assert "Authorization" in server.asked[0][1]
    assert "Authorization" not in other.asked[0][1]


def test_a_token_is_not_shown_to_another_port_or_scheme_of_its_host():
    service = Service("Civitai", "https://civitai.com", token="secret")
    addresses = [
        "https://civitai.com/a",
        "https://civitai.com:443/a",
        "http://civitai.com/a",
        "https://civitai.com:8443/a",
    ]
    assert [service.has_url(httpx2.URL(address)) for address in addresses] == [True, True, False, False]
    assert not service.has_url(httpx2.URL("https://civitai.com.evil.org/a"))
    assert "secret" not in repr(service)


def test_redirects_without_end_are_given_up(server, web):
    server.replies["/round"] = redirect("/about")
    server.replies["/about"] = redirect("/round")
    with pytest.raises(DownloadFailed, match="redirected more than 10 times"):
        body(web, server.root + "/round")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/a", "javascript:alert(1)"])
def test_redirects_lead_nowhere_but_into_the_web(server, web, target):
    server.replies["/out"] = redirect(target)
    with pytest.raises(DownloadFailed, match="not a web address"):
        body(web, server.root + "/out")


def test_redirects_do_not_lead_from_https_to_http():
    with pytest.raises(DownloadFailed, match="from https to http"):
        redirect_target(httpx2.URL("https://civitai.com/a"), "http://civitai.com/b")
    assert redirect_target(httpx2.URL("http://civitai.com/a"), "https://civitai.com/b").scheme == "https"
    assert redirect_target(httpx2.URL("https://civitai.com/a/b"), "../c?x=1#d") == httpx2.URL(
        "https://civitai.com/c?x=1"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, r"needs permission \(401\): set CIVITAI_TOKEN to a token that may read it"),
        (403, r"needs permission \(403\): set CIVITAI_TOKEN .*accept the terms"),
        (404, r"does not exist \(404\): check the address; if it is private, set CIVITAI_TOKEN"),
        (410, r"does not exist \(410\)"),
        (204, "answers '204 No Content': check the address"),
        (418, "answers .*: check the address"),
        (501, "answers '501 Not Implemented': try again later"),
    ],
)
def test_an_error_status_says_what_to_do(server, web, code, message, slept):
    server.replies["/a"] = status(code)
    with pytest.raises(DownloadFailed, match=message):
        body(web, server.root + "/a")
    assert slept == []


def test_the_error_of_another_server_does_not_mention_a_token(other, web):
    other.replies["/a"] = status(403)
    with pytest.raises(DownloadFailed, match=r"\(403\): download it in a browser"):
        body(web, other.root + "/a")


# What the services say: Civitai's fields, and the header and the fields of the hub
REFUSALS = [
    (
        {"error": "Unauthorized", "message": "The creator of this asset requires you to be logged in"},
        {},
        "be logged in",
    ),
    ({"error": "Early Access", "deadline": "2030", "message": "This asset is in Early Access."}, {}, "in Early Access"),
    ({"error": "Access to model a/b is restricted.\n You must have access"}, {}, "is restricted. You must have access"),
    ({"error": {"message": "Not in your country", "code": 1}}, {}, "Not in your country"),
    ({}, {"X_Error_Message": "Access to model a/b is restricted"}, "a/b is restricted"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("code", [401, 403, 404, 451])
def test_a_refusal_repeats_the_servers_own_sentence(server, web, refusal, code):
    answer, headers, sentence = refusal
    server.replies["/a"] = lambda handler: handler.answer(code, json.dumps(answer).encode(), **headers)
    with pytest.raises(DownloadFailed, match=rf'{code}.*, it says "[^"\n]*{sentence}[^"\n]*"\)?: ') as error:
        body(web, server.root + "/a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "answer", [b"<html>Forbidden</html>", b"[" * 100_000, b'{"message": 7}', b'"no"', b'{"message": "  "}', b"\xff"]
)
def test_a_refusal_without_a_sentence_says_what_to_do(server, web, answer):
    server.replies["/a"] = lambda handler: handler.answer(403, answer)
    with pytest.raises(DownloadFailed, match=r"needs permission \(403\): set CIVITAI_TOKEN"):
        body(web, server.root + "/a")


def test_a_long_sentence_is_cut_and_has_no_control_characters(server, web):
    server.replies["/a"] = lambda handler: handler.answer(403, json.dumps({"message": "no\x1b[31m " * 1000}).encode())
    with pytest.raises(DownloadFailed) as error:
        body(web, server.root + "/a")
    assert len(str(error.value)) < 600
    assert "\x1b" not in str(error.value)


def test_a_redirect_to_the_login_is_not_a_file(server, web):
    server.replies["/a"] = redirect("/login?returnUrl=/a&reason=download-auth")
    server.offers("/login", b"<html>")
    with pytest.raises(DownloadFailed, match="/a needs a login: set CIVITAI_TOKEN"):
        body(web, server.root + "/a")


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        ("https://civitai.com/a", True),
        ("https://civitai.red/a", True),
        ("https://www.civitai.green/a", True),
        ("http://civitai.red/a", False),
        ("https://civitai.red:8443/a", False),
        ("https://civitai.red.example.org/a", False),
    ],
)
def test_the_token_goes_to_civitai_under_each_of_its_domains(monkeypatch, url, is_sent):
    monkeypatch.setenv("CIVITAI_TOKEN", "secret")
    services = Services.from_environment()
    assert (services.find(httpx2.URL(url)) is services.civitai) is is_sent
    monkeypatch.setenv("CIVITAI_ENDPOINT", "https://mirror.example.org")
    assert Services.from_environment().find(httpx2.URL(url)) is None


def test_a_401_of_the_hub_may_mean_a_missing_repository(server, web):
    server.replies["/a"] = status(401, X_Error_Code="RepoNotFound")
    with pytest.raises(DownloadFailed, match="does not exist"):
        body(web, server.root + "/a")


@pytest.mark.parametrize(
    ("code", "message"), [(429, "too many requests"), (500, "try again later"), (503, "try again later")]
)
def test_a_busy_server_is_asked_again_with_growing_pauses(server, web, code, message, slept):
    server.replies["/a"] = status(code)
    with pytest.raises(DownloadFailed, match=message):
        body(web, server.root + "/a")
    assert slept == [1, 2, 4, 8]


@pytest.mark.parametrize("after", ["7", formatdate(NOW + 7, usegmt=True)])
def test_a_busy_server_says_how_long_to_wait(server, web, lora, slept, after):
    server.offers("/later", lora)
    server.replies["/a"] = in_turn(status(429, Retry_After=after), server.replies["/later"])
    assert body(web, server.root + "/a") == lora
    assert slept == [7]


def test_a_long_retry_after_is_left_to_the_user(server, web, slept):
    server.replies["/a"] = status(429, Retry_After="1800")
    with pytest.raises(DownloadFailed, match="for 30 minutes: try again then"):
        body(web, server.root + "/a")
    assert slept == []


@pytest.mark.parametrize("odd", ["soon", "-5", "9" * 400, "١٢"])
def test_an_odd_wish_to_wait_breaks_nothing(server, web, odd):
    server.replies["/a"] = status(503, Retry_After=odd.encode().decode("latin-1"))
    with pytest.raises(DownloadFailed):
        body(web, server.root + "/a")


def test_a_server_that_is_not_there_is_tried_and_named(web, slept):
    with Server() as gone:
        root = gone.root
    with pytest.raises(DownloadFailed, match=r"cannot be reached .*check the address and the connection"):
        body(web, root + "/a")
    assert slept == [1, 2, 4, 8]


def test_secrets_of_an_address_are_not_shown(server, web):
    with pytest.raises(DownloadFailed) as error:
        body(web, server.root.replace("//", "//me:hush@") + "/a?token=hush")
    assert "hush" not in str(error.value)
    assert public_url("https://me:hush@example.org:8443/a/b?token=hush#hush") == "https://example.org:8443/a/b"


@pytest.mark.parametrize(
    "address", ["example.org/a", "ftp://example.org/a", "https://", "https://exa mple.org/\0", "http://[::1"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(DownloadFailed, match="is not a web address"):
        parse_url(address)


def test_json_is_read(server, web):
    server.says("/a", {"id": 1})
    assert web.json(server.root + "/a") == {"id": 1}


@pytest.mark.parametrize("answer", [b"[1]", b"<html>", b"", b"[" * 100_000, b"\xff\xfe"])
def test_an_answer_that_is_not_a_json_object_is_refused(server, web, answer):
    server.replies["/a"] = lambda handler: handler.answer(200, answer)
    with pytest.raises(DownloadFailed, match="does not return a JSON object"):
        web.json(server.root + "/a")


def test_json_without_end_is_cut_off(server, web):
    server.replies["/a"] = lambda handler: handler.answer(200, b" " * (MAX_JSON_BYTES + 2**20))
    with pytest.raises(DownloadFailed, match="sends more than 17 MB of JSON"):
        web.json(server.root + "/a")


def test_a_proxy_of_the_environment_is_used(server, monkeypatch, lora):
    server.replies[THERE] = lambda handler: handler.answer(200, lora)
    monkeypatch.setenv("HTTP_PROXY", server.root)
    monkeypatch.setenv("NO_PROXY", "")
    with WebClient(Services()) as web:
        assert body(web, "http://nowhere.invalid" + THERE) == lora


def test_tokens_come_from_the_environment_or_a_file(monkeypatch, tmp_path):
    assert Services.from_environment().civitai.token is None
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tokens.toml").write_text('civitai = "written"')
    assert Services.from_environment().civitai.token == "written"
    monkeypatch.setenv("CIVITAI_TOKEN", "set")
    assert Services.from_environment().civitai.token == "set"


def test_a_damaged_tokens_file_is_refused(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tokens.toml").write_text("civitai = written")
    with pytest.raises(BadFile, match=r'write lines such as civitai = "\.\.\."'):
        Services.from_environment()


def test_services_can_be_elsewhere(monkeypatch):
    monkeypatch.setenv("CIVITAI_ENDPOINT", "https://mirror.example.org/")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    services = Services.from_environment()
    assert (services.civitai.root, services.hub.root) == ("https://mirror.example.org", "https://hub.example.org")
