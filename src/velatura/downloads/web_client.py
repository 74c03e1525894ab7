"""HTTP client for downloads: retries, checked redirects, limited sizes. Tokens go only to their own service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Self, cast

import httpx2
from httpx2 import URL, Response

from velatura.downloads.services import Service, Services
from velatura.errors import DownloadFailed

REDIRECT_STATUSES = {301, 302, 303, 307, 308}
ACCEPTED_STATUSES = {200, 206, 416}
MAX_REDIRECTS = 10
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504, *range(520, 525)}  # 520 to 524: Cloudflare cannot reach the server
MAX_TRIES = 5
MAX_WAIT_SECONDS = 120  # for a longer Retry-After the user decides
MAX_REASON_BYTES = 2**16  # of an answer that says why a request is refused
MAX_REASON_LENGTH = 300  # characters of it that a message shows
LOGIN_PATHS = {"/login", "/login/"}  # to which a service redirects instead of refusing
MAX_JSON_BYTES = 16 * 2**20  # a model with hundreds of versions takes 2 MiB
# No compression: compressed data could have any size once unpacked, and models hardly shrink
REQUEST_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "velatura"}
CHECK_HINT = "check the address and the connection, then give the same command again"
CONNECTION_ERRORS = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


class WebClient:
    """Sends GET requests, with retries and the user's tokens.

    Args:
        services: Services with tokens.
        sleep, now: Clock, replaced in tests.
    """

    def __init__(
        self,
        services: Services,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.services = services
        self._sleep = sleep
        self._now = now
        self._client = httpx2.Client(
            headers=REQUEST_HEADERS, timeout=httpx2.Timeout(60, connect=15), follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def json(self, url: str) -> dict[str, object]:
        """Return the JSON object at a URL.

        Raises:
            DownloadFailed: if the request fails, or the answer is not a JSON object of a reasonable size.
        """
        try:
            with self.stream(url) as response:
                answer: object = json.loads(_read_body(response))
        except httpx2.HTTPError as error:
            raise DownloadFailed(
                f"{public_url(url)}: the connection broke ({_error_summary(error)}): try again"
            ) from None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise DownloadFailed(
                f"{public_url(url)} does not return a JSON object: check the address, or try again later"
            )
        return cast("dict[str, object]", answer)

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str] | None = None) -> Generator[Response]:
        """Open the answer after all redirects, with its body unread. Busy servers are asked again.

        Args:
            url: URL to request.
            headers: Further headers, such as Range.

        Yields:
            An answer with status 200, 206 or 416 (the requested range is beyond the end of the file).

        Raises:
            DownloadFailed: for other statuses and for connection errors.
        """
        response = self._send_with_retries(url, headers or {})
        try:
            if response.status_code not in ACCEPTED_STATUSES:
                raise DownloadFailed(self._refusal_message(response))
            coding = response.headers.get("content-encoding", "identity")
            if coding != "identity":
                raise DownloadFailed(
                    f"{public_url(url)} is compressed with {coding[:20]!r}, although it must not be: use another source"
                )
            yield response
        finally:
            response.close()

    def wait(self, attempt: int) -> None:
        """Wait before the next try, twice as long every time."""
        self._sleep(2.0**attempt)

    def _send_with_retries(self, url: str, headers: Mapping[str, str]) -> Response:
        """Return the first answer of a server that is not busy, or the last of MAX_TRIES answers."""
        for attempt in range(MAX_TRIES):
            is_last = attempt == MAX_TRIES - 1
            try:
                response = self._send_with_redirects(url, headers)
            except CONNECTION_ERRORS as error:
                if is_last:
                    raise DownloadFailed(
                        f"{public_url(url)} cannot be reached ({_error_summary(error)}): {CHECK_HINT}"
                    ) from None
                self.wait(attempt)
                continue
            except httpx2.HTTPError as error:
                raise DownloadFailed(
                    f"{public_url(url)} cannot be requested ({_error_summary(error)}): {CHECK_HINT}"
                ) from None
            if response.status_code not in RETRY_STATUSES or is_last:
                return response
            response.close()
            self._sleep(self._retry_after(response, url) or 2.0**attempt)
        raise AssertionError

    def _send_with_redirects(self, url: str, headers: Mapping[str, str]) -> Response:
        """Follow redirects and return the final answer."""
        current = parse_url(url)
        for _ in range(MAX_REDIRECTS):
            response = self._client.send(self._request(current, headers), stream=True)
            if response.status_code not in REDIRECT_STATUSES:
                return response
            response.close()
            current = redirect_target(current, response.headers.get("location", ""))
            service = self.services.find(current)
            if service and current.path in LOGIN_PATHS:
                raise DownloadFailed(f"{public_url(url)} needs a login: {_login_hint(service)}")
        raise DownloadFailed(f"{public_url(url)} is redirected more than {MAX_REDIRECTS} times: check the address")

    def _request(self, url: URL, headers: Mapping[str, str]) -> httpx2.Request:
        service = self.services.find(url)
        token = {"Authorization": f"Bearer {service.token}"} if service and service.token else {}
        return self._client.build_request("GET", url, headers={**headers, **token})

    def _retry_after(self, response: Response, url: str) -> float:
        """Return the seconds of a busy server's Retry-After, or 0 without that header."""
        seconds = _retry_seconds(response.headers.get("retry-after", ""), self._now())
        if seconds > MAX_WAIT_SECONDS:
            minutes = round(seconds / 60)
            raise DownloadFailed(f"{public_url(url)} accepts no requests for {minutes} minutes: try again then")
        return seconds

    def _refusal_message(self, response: Response) -> str:
        status, address = response.status_code, public_url(str(response.url))
        service = self.services.find(response.url)
        if response.headers.get("x-error-code") == "RepoNotFound":  # the hub answers 401 without a login
            status = 404
        reason = _refusal_reason(response)
        if status in {401, 403}:
            return f"{address} needs permission ({status}{reason}): {_login_hint(service)}"
        if status in {404, 410}:
            hint = f"; if it is private, {_login_hint(service)}" if service else ""
            return f"{address} does not exist ({status}{reason}): check the address{hint}"
        if status == 429:
            return f"{address} has received too many requests (429): try again in some minutes"
        answer = f"{status} {response.reason_phrase}".strip()
        advice = "try again later" if status >= 500 else "check the address"
        return f"{address} answers {answer!r}{reason}: {advice}"


def _refusal_reason(response: Response) -> str:
    """Return the sentence in which a service says why it refuses, quoted, after a comma; "" if it says nothing.

    Civitai answers with JSON that has a "message" or an "error", the hub with a header or such JSON.
    """
    texts: list[object] = [response.headers.get("x-error-message")]
    with suppress(httpx2.HTTPError, ValueError, RecursionError):
        body = b""
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MAX_REASON_BYTES:
                break
        answer: object = json.loads(body)
        if isinstance(answer, dict):
            fields = cast("dict[str, object]", answer)
            nested = fields.get("error")  # of some answers an object with the message in it
            inner = cast("dict[str, object]", nested).get("message") if isinstance(nested, dict) else nested
            texts = [fields.get("message"), *texts, inner]
    reason = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    one_line = "".join(filter(str.isprintable, " ".join(reason.split())))
    shortened = one_line if len(one_line) <= MAX_REASON_LENGTH else f"{one_line[:MAX_REASON_LENGTH]}..."
    return f', it says "{shortened}"' if shortened else ""


def _read_body(response: Response) -> bytes:
    """Return the body of an answer of limited size."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            size = f"{MAX_JSON_BYTES / 1e6:.0f} MB"
            raise DownloadFailed(f"{public_url(str(response.url))} sends more than {size} of JSON: check the address")
    return bytes(body)


def parse_url(url: str) -> URL:
    """Parse an http or https URL; raise DownloadFailed for anything else."""
    try:
        parsed = URL(url)
    except (httpx2.InvalidURL, ValueError):
        parsed = URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise DownloadFailed(f"{url[:200]!r} is not a web address: write one that begins with https://")
    return parsed


def public_url(url: str) -> str:
    """Return a URL without its secret parts: user name, password and query."""
    parsed = parse_url(url)
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.scheme}://{parsed.host}{port}{parsed.path}"[:300]


def redirect_target(current: URL, location: str) -> URL:
    """Return the target of a redirect.

    Raises:
        DownloadFailed: if it is not a web address, or leads from https to http.
    """
    try:
        target = current.join(location).copy_with(fragment=None)
    except (httpx2.InvalidURL, ValueError):
        target = URL()
    if target.scheme not in {"http", "https"} or not target.host:
        raise DownloadFailed(
            f"{public_url(str(current))} redirects to {location[:80]!r}, which is not a web address: do not trust it"
        )
    if current.scheme == "https" and target.scheme == "http":
        raise DownloadFailed(
            f"{public_url(str(current))} redirects from https to http, which is not encrypted: do not trust it"
        )
    return target


def _login_hint(service: Service | None) -> str:
    if service is None:
        return "download it in a browser, where you can log in"
    permission = " to a token that may read it" if service.token else ""
    return f"set {service.token_variable}{permission}, and accept the terms on its page if there are any"


def _retry_seconds(text: str, now: float) -> float:
    """Parse Retry-After: seconds, or a date."""
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _error_summary(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:120]
