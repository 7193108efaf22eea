"""The page for people, in a real browser without a screen."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, assign
from test_shadow import shadow, until
from tiny_world import video_at

BROWSER = shutil.which("chromium")


@pytest.fixture
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no chromium here: apt-get install chromium (.ci/run does)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its own sandbox to root, which CI may be; the page comes from this test's own server.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield running
        running.close()


def test_a_watch_moves_the_slates(
    server: LiveServer, serving_project: Path, browser: Any, tmp_path: Path
) -> None:
    """Choose a user, see history and both slates, post a watch, and see them move; nothing comes from elsewhere."""
    server.add(
        *(
            {"type": "watch", "id": f"w{place}", "user_id": "<b>Ann</b>", "video_id": video_at(place)}
            | {"watch_time_s": 75.0, "completed": True}
            for place in (120, 121)
        ),
        {"type": "search", "id": "s", "user_id": "<b>Ann</b>", "query": "<img src=x onerror=alert(1)>"},
    )
    assign(serving_project, "challenger", 2)
    until(lambda: server.post("/v1/compare", {"user_id": 1})[1].get("challenger") is not None, server)
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.set_default_timeout(20_000)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(f"http://{server.address}/")
    page.wait_for_selector("#users option", state="attached")
    assert "champion is version 1" in page.inner_text("#models")

    page.fill("#user", "<b>Ann</b>")
    page.fill("#how-many", "30")
    page.click("#user-form button")
    page.wait_for_selector("#champion tbody tr")
    page.wait_for_selector("#challenger tbody tr")
    assert page.inner_text("#champion h2") == "Champion, version 1"
    assert page.inner_text("#challenger h2") == "Challenger, version 2"
    assert page.locator("#champion tbody tr").count() == 30
    history = page.locator("#history li").all_inner_texts()
    assert history[0] == "searched “<img src=x onerror=alert(1)>”"
    assert history[1:] == [f"video {video_at(place)}, 1:15, completed" for place in (121, 120)]
    first = page.get_attribute("#champion tbody tr", "data-video")
    told = server.recommend("<b>Ann</b>", how_many=30, record=False)["videos"][0]
    assert str(told["video_id"]) == first
    cells = page.locator("#champion tbody tr").first.locator("td").all_inner_texts()
    minutes, seconds = divmod(round(told["expected_watch_time_s"]), 60)
    assert cells[3] == f"{minutes}:{seconds:02d}"
    assert cells[4].endswith(" d")
    assert set(told["sources"]) == {source.split(" ")[0] for source in cells[5].split(", ")}

    page.click("#champion tbody tr button")
    page.wait_for_selector(f"#champion tr[data-video='{first}']", state="detached")
    assert page.locator("#history li").nth(0).inner_text().startswith(f"video {first}, ")
    marks = page.locator("#champion tbody tr td:nth-child(2)").all_inner_texts()
    assert "new" in marks
    assert any(mark.startswith("▲") for mark in marks)
    assert page.inner_text("#problem") == ""
    page.screenshot(path=os.environ.get("WATCHNEXT_SCREENSHOT") or str(tmp_path / "page.png"))

    assign(serving_project, "challenger", None)
    until(lambda: shadow(server)["version"] is None, server)
    page.click("#user-form button")
    page.wait_for_selector("#challenger .note:has-text('no challenger')")
    assert errors == []
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {server.address}


def test_what_the_page_asks(server: LiveServer) -> None:
    """Also of somebody unknown, and out of bounds."""
    status, told = server.post("/v1/compare", {"user_id": "nobody"})
    assert status == 200
    assert (told["challenger"], told["why_not"]) == (None, "watchnext has no challenger")
    assert (
        server.get("/v1/users?at_most=3")[1]["user_ids"] == sorted(server.get("/v1/users")[1]["user_ids"])[:3]
    )
    assert server.get("/v1/users/nobody/history")[1]["last"] == []
    known = server.get("/v1/users/9/history?at_most=5")[1]
    assert (known["watches"], len(known["last"])) == (16, 5)
    for path in ("/v1/users?at_most=0", "/v1/users?at_most=x", f"/v1/users/{'7' * 200}/history"):
        assert server.get(path)[0] == 422
    status, text = server.get("/page.js")
    assert status == 200
    assert "innerHTML" not in text
