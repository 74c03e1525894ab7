"""Answers of strangers' servers: asked patiently, followed carefully, and never trusted for their size."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Self, cast

import httpx2
from httpx2 import URL, Response

from velatura.downloads.services import Service, Services
from velatura.errors import DownloadFailed

REDIRECT_STATUSES = {301, 302, 303, 307, 308}
ACCEPTED_STATUSES = {200, 206, 416}
MAX_REDIRECTS = 10
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504, *range(520, 525)}  # 520 and on: Cloudflare, which finds no server
MAX_TRIES = 5
MAX_WAIT_SECONDS = 120  # seconds that a server may ask for; beyond that a person decides
MAX_JSON_BYTES = 16 * 2**20  # of JSON; a model with hundreds of versions takes 2 MiB
# what is sent compressed could be anything once unpacked, and models hardly shrink
REQUEST_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "velatura"}
CHECK_HINT = "check the address and the connection, then give the same command again"
CONNECTION_ERRORS = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


class WebClient:
    """Asks servers for things; sleep and now are the clock."""

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
        """The JSON object that a server answers with."""
        try:
            with self.stream(url) as response:
                answer: object = json.loads(_read_body(response))
        except httpx2.HTTPError as error:
            raise DownloadFailed(
                f"{public_url(url)} broke off as it answered ({_error_summary(error)}): try again"
            ) from None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise DownloadFailed(
                f"{public_url(url)} answers with no JSON object: check the address, or try again later"
            )
        return cast("dict[str, object]", answer)

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str] | None = None) -> Generator[Response]:
        """The answer at the end of all redirects, its body still to be read; busy servers are asked again.

        416 comes to those who ask for more of a file than there is.
        """
        response = self._send_with_retries(url, headers or {})
        try:
            if response.status_code not in ACCEPTED_STATUSES:
                raise DownloadFailed(self._refusal_message(response))
            if (coding := response.headers.get("content-encoding", "identity")) != "identity":
                raise DownloadFailed(
                    f"{public_url(url)} comes compressed by {coding[:20]!r}, unasked: fetch it elsewhere"
                )
            yield response
        finally:
            response.close()

    def wait(self, attempt: int) -> None:
        """Wait before the next try, longer each time."""
        self._sleep(2.0**attempt)

    def _send_with_retries(self, url: str, headers: Mapping[str, str]) -> Response:
        """The first answer that is not that of a busy server, or the last of several."""
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
                    f"{public_url(url)} cannot be asked ({_error_summary(error)}): {CHECK_HINT}"
                ) from None
            if response.status_code not in RETRY_STATUSES or is_last:
                return response
            response.close()
            self._sleep(self._retry_after(response, url) or 2.0**attempt)
        raise AssertionError

    def _send_with_redirects(self, url: str, headers: Mapping[str, str]) -> Response:
        """The answer that is no redirect any more."""
        current = parse_url(url)
        for _ in range(MAX_REDIRECTS):
            response = self._client.send(self._request(current, headers), stream=True)
            if response.status_code not in REDIRECT_STATUSES:
                return response
            response.close()
            current = redirect_target(current, response.headers.get("location", ""))
        raise DownloadFailed(f"{public_url(url)} is redirected more than {MAX_REDIRECTS} times: check the address")

    def _request(self, url: URL, headers: Mapping[str, str]) -> httpx2.Request:
        service = self.services.find(url)
        token = {"Authorization": f"Bearer {service.token}"} if service and service.token else {}
        return self._client.build_request("GET", url, headers={**headers, **token})

    def _retry_after(self, response: Response, url: str) -> float:
        """How many seconds a busy server wants us to wait; 0 where it does not say."""
        seconds = _retry_seconds(response.headers.get("retry-after", ""), self._now())
        if seconds > MAX_WAIT_SECONDS:
            minutes = round(seconds / 60)
            raise DownloadFailed(f"{public_url(url)} wants no more questions for {minutes} minutes: try again then")
        return seconds

    def _refusal_message(self, response: Response) -> str:
        status, address = response.status_code, public_url(str(response.url))
        service = self.services.find(response.url)
        if response.headers.get("x-error-code") == "RepoNotFound":  # the hub then says 401 to those it does not know
            status = 404
        if status in {401, 403}:
            return f"{address} is not given to everyone ({status}): {_login_hint(service)}"
        if status in {404, 410}:
            hint = f"; if it is private, {_login_hint(service)}" if service else ""
            return f"{address} is not there ({status}): check the address{hint}"
        if status == 429:
            return f"{address} has been asked too often (429): try again in some minutes"
        answer = f"{status} {response.reason_phrase}".strip()
        return f"{address} answers {answer!r}: {'try again later' if status >= 500 else 'check the address'}"


def _read_body(response: Response) -> bytes:
    """The body of an answer, as long as it is an answer and no flood."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise DownloadFailed(f"{public_url(str(response.url))} answers without end: check the address")
    return bytes(body)


def parse_url(url: str) -> URL:
    """An address of the web, or DownloadFailed."""
    try:
        parsed = URL(url)
    except (httpx2.InvalidURL, ValueError):
        parsed = URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise DownloadFailed(f"{url[:200]!r} is no address of the web: write one with https://")
    return parsed


def public_url(url: str) -> str:
    """An address without what may be secret: names, passwords and what follows a question mark."""
    parsed = parse_url(url)
    return f"{parsed.scheme}://{parsed.host}{f':{parsed.port}' if parsed.port else ''}{parsed.path}"[:300]


def redirect_target(current: URL, location: str) -> URL:
    """Where a redirect leads, if one may go there."""
    try:
        target = current.join(location).copy_with(fragment=None)
    except (httpx2.InvalidURL, ValueError):
        target = URL()
    if target.scheme not in {"http", "https"} or not target.host:
        raise DownloadFailed(
            f"{public_url(str(current))} redirects to {location[:80]!r}, not into the web: do not trust it"
        )
    if current.scheme == "https" and target.scheme == "http":
        raise DownloadFailed(
            f"{public_url(str(current))} redirects from https to http, where anyone could read: do not trust it"
        )
    return target


def _login_hint(service: Service | None) -> str:
    if service is None:
        return "fetch it in a browser, where you can log in"
    known = " to one that may read it" if service.token else ""
    return f"set {service.token_variable}{known}, and accept its terms on its page if it has any"


def _retry_seconds(text: str, now: float) -> float:
    """Read Retry-After: seconds, or a date."""
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _error_summary(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:120]
