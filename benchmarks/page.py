"""What `make bench` prints of the page: how fast it is and how much it weighs, in chromium over the loopback device.

Each figure stands beside its bound. The browser is warm; its cache is empty where that is said.
`--short` tries less often. The exit status is 1 if a bound is missed.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

try:
    from playwright.sync_api import Browser, Page, Route, sync_playwright
except ImportError:
    sys.exit("benchmarks/page.py needs playwright: make setup installs it")

from serving import running_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
KIB = 1024
PROMPT = "#panel-paint [data-field=prompt] textarea"
# The first paint that has text: an empty page counts for nothing
FIRST_PAINT = """() => new Promise((resolve) => {
  const look = () => {
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    if (paint) resolve(paint.startTime);
    else setTimeout(look, 5);
  };
  look();
})"""
USABLE = """() => new Promise((resolve) => {
  const look = () => {
    if (document.querySelector(".paint-form textarea")) resolve(performance.now());
    else requestAnimationFrame(look);
  };
  look();
})"""
BYTES = """() => {
  const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const ours = all.filter(({ name }) => !name.includes("/api/"));
  return [ours.reduce((sum, { transferSize }) => sum + transferSize, 0), ours.length];
}"""
# From a key to the frame in which its letter stands: the event's own time, and the frame after its handlers
ECHO = """() => {
  const box = document.querySelector("#panel-paint [data-field=prompt] textarea");
  window.echoes = [];
  box.addEventListener("keydown", (event) => {
    requestAnimationFrame(() => {
      const channel = new MessageChannel(); // told after the frame's style, layout and paint
      channel.port1.onmessage = () => window.echoes.push(performance.now() - event.timeStamp);
      channel.port2.postMessage(null);
    });
  }, { capture: true });
}"""
# From the time that the server gave an event to the frame in which the page shows its step
STEP = """async () => {
  const { on } = await import("/page/events.js");
  window.delays = [];
  on("step", ({ done, time }) => {
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      const isShown = document.querySelector(".progress-text").textContent.startsWith(`step ${done} of`);
      channel.port1.onmessage = () => window.delays.push(isShown ? Date.now() - 1000 * time : Infinity);
      channel.port2.postMessage(null);
    });
  });
}"""
SCROLL = """async () => {
  const list = document.querySelector(".card-list");
  const nextFrame = () => new Promise(requestAnimationFrame);
  const frames = [];
  let last = await nextFrame();
  for (let frame = 0; frame < 120; frame += 1) {
    list.scrollTop += 400; // some fifty screens in two seconds
    const now = await nextFrame();
    frames.push(now - last);
    last = now;
  }
  return frames;
}"""
SEARCH = """async () => {
  const box = document.querySelector(".card-filters input");
  const shown = () => document.querySelector(".card-list .card-name")?.textContent;
  const times = [];
  for (const number of ["4321", "0042", "1234", "2500", "3999"]) {
    const start = performance.now();
    box.value = number;
    box.dispatchEvent(new Event("input"));
    while (shown() !== `file-${number}`) await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
  }
  return times;
}"""


def answer_with_files(count: int) -> Callable[[Route], None]:
    """Return a handler that answers for the library with so many LoRAs."""

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        start, limit = int(query["start"][0]), int(query["limit"][0])
        numbers = range(start, min(count, start + limit))
        route.fulfill(json={"files": [describe_file(number) for number in numbers], "total": count})

    return answer


def describe_file(number: int) -> dict[str, object]:
    """Return a file of a library as the server lists it."""
    return {
        "id": f"{number:016x}",
        "name": f"file-{number:04}",
        "kind": "lora",
        "family": "tiny",
        "place": f"folder/file-{number:04}.safetensors",
        "summary": "lora",
        "bytes": 1000,
        "trigger_words": [f"word{number}"],
        "strength": None,
        "has_preview": False,
        "error": None,
    }


def measure_first_visit(browser: Browser, address: str, rounds: int) -> dict[str, float]:
    """Return when a first visitor sees something, when the prompt is there, and how much was sent for it."""
    paints: list[float] = []
    usable: list[float] = []
    sent = files = 0
    for _ in range(rounds + 1):
        context = browser.new_context(viewport={"width": 1280, "height": 900})  # with an empty cache
        page = context.new_page()
        page.goto(f"{address}/")
        usable.append(page.evaluate(USABLE))
        paints.append(page.evaluate(FIRST_PAINT))
        sent, files = page.evaluate(BYTES)
        context.close()
    # the first visit warms the browser
    return {
        "paint": statistics.median(paints[1:]),
        "usable": statistics.median(usable[1:]),
        "bytes": sent,
        "files": files,
    }


def measure_echo(page: Page, letters: int) -> list[float]:
    """Return the milliseconds from each key to the frame that shows it."""
    page.evaluate(ECHO)
    page.locator(PROMPT).click()
    for number in range(letters):
        page.keyboard.press("abcdefghij "[number % 11])
        page.wait_for_timeout(30)
    return page.evaluate("window.echoes")


def measure_steps(page: Page, steps: int) -> list[float]:
    """Return the milliseconds from the time of each step's event to the frame that shows it."""
    page.get_by_label("Steps", exact=True).fill(str(steps))
    page.evaluate(STEP)
    page.keyboard.press("Control+Enter")
    page.locator("#panel-paint .stage-view > img").wait_for()
    return page.evaluate("window.delays")


def open_paint(browser: Browser, address: str, files: int) -> Page:
    """Open the tab Paint beside a library of so many overlays, and wait until it has them all."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.route("**/api/library?*", answer_with_files(files))
    page.goto(f"{address}/")
    page.locator(f"[aria-setsize='{files}']").first.wait_for()
    return page


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(browser: Browser, address: str, is_short: bool) -> list[tuple[str, float, float, str]]:
    """Return the name, the figure, the bound and the unit of each gate."""
    visit = measure_first_visit(browser, address, 3 if is_short else 9)
    page = open_paint(browser, address, 2000)
    echoes = measure_echo(page, 20 if is_short else 100)
    delays = measure_steps(page, 20 if is_short else 100)
    page.context.close()
    page = open_paint(browser, address, 5000)
    frames = page.evaluate(SCROLL)
    elements = page.locator(".card").count()
    searches = page.evaluate(SEARCH)
    page.context.close()
    return [
        ("first paint, empty cache", visit["paint"], 150, "ms"),
        (f"sent for the tab Paint, {visit['files']:.0f} files", visit["bytes"] / KIB, 150, "KiB"),
        ("prompt can be typed into, empty cache", visit["usable"], 500, "ms"),
        ("key to echo, 2,000 cards, median", statistics.median(echoes), 16, "ms"),
        ("key to echo, 2,000 cards, 19 of 20", percentile(echoes, 0.95), 50, "ms"),
        ("step event to pixel, median", statistics.median(delays), 100, "ms"),
        ("step event to pixel, 19 of 20", percentile(delays, 0.95), 100, "ms"),
        ("frame while 5,000 cards scroll, median", statistics.median(frames), 17, "ms"),
        ("frame while 5,000 cards scroll, 19 of 20", percentile(frames, 0.95), 34, "ms"),
        ("elements of 5,000 cards in the page", elements, 60, ""),
        ("search in 5,000 cards to pixel, median", statistics.median(searches), 100, "ms"),
    ]


def main() -> int:
    """Measure, print, and return 1 if a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="try less often")
    is_short = parser.parse_args().short
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        print("page: no browser is here, install chromium to measure it")
        return 0
    arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        gates = measure(browser, address, is_short)
        browser.close()
    print("page, tiny base, loopback")
    for name, figure, bound, unit in gates:
        print(f"  {name:<42} {figure:8.1f} {unit:<3} of {bound:g} at most{'' if figure <= bound else '  MISSED'}")
    return int(any(figure > bound for _, figure, bound, _ in gates))


if __name__ == "__main__":
    sys.exit(main())
