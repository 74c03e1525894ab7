"""Pictures that are finished while nobody looks: in another tab of the page, in a browser's tab that is hidden."""

from __future__ import annotations

from tests.server.conftest import paint
from tests.server.page.conftest import PAINTED, until

HIDE = """(isHidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, value: isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_picture_that_was_finished_while_another_tab_was_shown_is_shown_later(open_page, client):
    page = open_page("#paint")
    page.locator("#panel-paint .result").first.or_(page.locator(".stage-empty")).first.wait_for()
    page.get_by_role("tab", name="Picture info").click()
    paint(client, "a lighthouse in the fog")
    page.locator(".result img[alt='a lighthouse in the fog']").wait_for(state="attached")
    page.get_by_role("tab", name="Paint").click()
    page.locator(f"{PAINTED}[alt='a lighthouse in the fog']").wait_for()


def test_a_picture_that_was_chosen_stays_when_the_tab_comes_back(open_page, client):
    page = open_page("#paint")
    for prompt in ("a first cup", "a second cup"):
        paint(client, prompt)
    page.locator(f"{PAINTED}[alt='a second cup']").wait_for()
    page.locator(".result", has=page.locator("img[alt='a first cup']")).click()
    page.reload()
    page.locator(f"{PAINTED}[alt='a first cup']").wait_for()
    page.get_by_role("tab", name="Picture info").click()
    page.get_by_role("tab", name="Paint").click()
    page.wait_for_timeout(100)
    assert page.locator(PAINTED).get_attribute("alt") == "a first cup"


def test_a_picture_that_was_finished_while_the_browser_tab_was_hidden_is_shown_later(open_page, client):
    page = open_page("#info")
    page.clock.install()
    page.goto(page.url.replace("#info", "?again#paint"))
    page.locator("#panel-paint .result").first.or_(page.locator(".stage-empty")).first.wait_for()
    page.evaluate(HIDE, True)
    page.clock.fast_forward(31_000)  # after half a minute a hidden page gives its connection back
    paint(client, "a red boat")
    assert page.locator(".result img[alt='a red boat']").count() == 0
    page.evaluate(HIDE, False)
    until(page, f"""document.querySelector({PAINTED!r})?.alt === "a red boat" """)
