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

REDIRECTS = {301, 302, 303, 307, 308}
ANSWERS = {200, 206, 416}
MOST_HOPS = 10
BUSY = {408, 425, 429, 500, 502, 503, 504, *range(520, 525)}  # 520 and on: Cloudflare, which finds no server
TRIES = 5
LONGEST_WAIT = 120  # seconds that a server may ask for; beyond that a person decides
LARGEST_ANSWER = 16 * 2**20  # of JSON; a model with hundreds of versions takes 2 MiB
# what is sent compressed could be anything once unpacked, and models hardly shrink
PLAIN = {"Accept-Encoding": "identity", "User-Agent": "velatura"}
CHECK = "check the address and the connection, then give the same command again"
BROKEN = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


class Web:
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
        self._client = httpx2.Client(headers=PLAIN, timeout=httpx2.Timeout(60, connect=15), follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def json(self, url: str) -> dict[str, object]:
        """The JSON object that a server answers with."""
        try:
            with self.opened(url) as response:
                found: object = json.loads(_read(response))
        except httpx2.HTTPError as error:
            raise DownloadFailed(f"{shown(url)} broke off as it answered ({_said(error)}): try again") from None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise DownloadFailed(f"{shown(url)} answers with no JSON object: check the address, or try again later")
        return cast("dict[str, object]", found)

    @contextmanager
    def opened(self, url: str, headers: Mapping[str, str] | None = None) -> Generator[Response]:
        """The answer at the end of all redirects, its body still to be read; busy servers are asked again.

        416 comes to those who ask for more of a file than there is.
        """
        response = self._patiently(url, headers or {})
        try:
            if response.status_code not in ANSWERS:
                raise DownloadFailed(self._refusal(response))
            if (coding := response.headers.get("content-encoding", "identity")) != "identity":
                raise DownloadFailed(f"{shown(url)} comes compressed by {coding[:20]!r}, unasked: fetch it elsewhere")
            yield response
        finally:
            response.close()

    def wait(self, tried: int) -> None:
        """Wait before the next try, longer each time."""
        self._sleep(2.0**tried)

    def _patiently(self, url: str, headers: Mapping[str, str]) -> Response:
        """The first answer that is not that of a busy server, or the last of several."""
        for tried in range(TRIES):
            is_last = tried == TRIES - 1
            try:
                response = self._followed(url, headers)
            except BROKEN as error:
                if is_last:
                    raise DownloadFailed(f"{shown(url)} cannot be reached ({_said(error)}): {CHECK}") from None
                self.wait(tried)
                continue
            except httpx2.HTTPError as error:
                raise DownloadFailed(f"{shown(url)} cannot be asked ({_said(error)}): {CHECK}") from None
            if response.status_code not in BUSY or is_last:
                return response
            response.close()
            self._sleep(self._asked_for(response, url) or 2.0**tried)
        raise AssertionError

    def _followed(self, url: str, headers: Mapping[str, str]) -> Response:
        """The answer that is no redirect any more."""
        at = readable(url)
        for _ in range(MOST_HOPS):
            response = self._client.send(self._request(at, headers), stream=True)
            if response.status_code not in REDIRECTS:
                return response
            response.close()
            at = redirected(at, response.headers.get("location", ""))
        raise DownloadFailed(f"{shown(url)} is redirected more than {MOST_HOPS} times: check the address")

    def _request(self, url: URL, headers: Mapping[str, str]) -> httpx2.Request:
        service = self.services.at(url)
        token = {"Authorization": f"Bearer {service.token}"} if service and service.token else {}
        return self._client.build_request("GET", url, headers={**headers, **token})

    def _asked_for(self, response: Response, url: str) -> float:
        """How many seconds a busy server wants us to wait; 0 where it does not say."""
        seconds = _seconds(response.headers.get("retry-after", ""), self._now())
        if seconds > LONGEST_WAIT:
            minutes = round(seconds / 60)
            raise DownloadFailed(f"{shown(url)} wants no more questions for {minutes} minutes: try again then")
        return seconds

    def _refusal(self, response: Response) -> str:
        status, place = response.status_code, shown(str(response.url))
        service = self.services.at(response.url)
        if response.headers.get("x-error-code") == "RepoNotFound":  # the hub then says 401 to those it does not know
            status = 404
        if status in {401, 403}:
            return f"{place} is not given to everyone ({status}): {_how_to_be_known(service)}"
        if status in {404, 410}:
            hint = f"; if it is private, {_how_to_be_known(service)}" if service else ""
            return f"{place} is not there ({status}): check the address{hint}"
        if status == 429:
            return f"{place} has been asked too often (429): try again in some minutes"
        said = f"{status} {response.reason_phrase}".strip()
        return f"{place} answers {said!r}: {'try again later' if status >= 500 else 'check the address'}"


def _read(response: Response) -> bytes:
    """The body of an answer, as long as it is an answer and no flood."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise DownloadFailed(f"{shown(str(response.url))} answers without end: check the address")
    return bytes(body)


def readable(url: str) -> URL:
    """An address of the web, or DownloadFailed."""
    try:
        found = URL(url)
    except (httpx2.InvalidURL, ValueError):
        found = URL()
    if found.scheme not in {"http", "https"} or not found.host:
        raise DownloadFailed(f"{url[:200]!r} is no address of the web: write one with https://")
    return found


def shown(url: str) -> str:
    """An address without what may be secret: names, passwords and what follows a question mark."""
    found = readable(url)
    return f"{found.scheme}://{found.host}{f':{found.port}' if found.port else ''}{found.path}"[:300]


def redirected(at: URL, location: str) -> URL:
    """Where a redirect leads, if one may go there."""
    try:
        target = at.join(location).copy_with(fragment=None)
    except (httpx2.InvalidURL, ValueError):
        target = URL()
    if target.scheme not in {"http", "https"} or not target.host:
        raise DownloadFailed(f"{shown(str(at))} redirects to {location[:80]!r}, not into the web: do not trust it")
    if at.scheme == "https" and target.scheme == "http":
        raise DownloadFailed(f"{shown(str(at))} redirects from https to http, where anyone could read: do not trust it")
    return target


def _how_to_be_known(service: Service | None) -> str:
    if service is None:
        return "fetch it in a browser, where you can log in"
    known = " to one that may read it" if service.token else ""
    return f"set {service.variable}{known}, and accept its terms on its page if it has any"


def _seconds(text: str, now: float) -> float:
    """Read Retry-After: seconds, or a date."""
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _said(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:120]
