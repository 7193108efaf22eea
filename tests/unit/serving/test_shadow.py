"""The challenger answers what the champion answered, and whatever happens to it the champion does not notice."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live_server import START_S, LiveServer, assign
from tiny_world import watch_time_s

from watchnext.serving.shadow_log import ShadowLog


@pytest.fixture
def shadowed(serving_project: Path, server: LiveServer) -> Iterator[LiveServer]:
    """The server, with version 2 as challenger that is ready; and without one afterwards."""
    assign(serving_project, "challenger", 2)
    ready = sum(line["message"] == "the challenger is ready" for line in server.log)
    until(lambda: sum(line["message"] == "the challenger is ready" for line in server.log) > ready, server)
    yield server
    assign(serving_project, "challenger", None)
    until(lambda: shadow(server)["version"] is None, server)


def until(holds: Callable[[], bool], server: LiveServer) -> None:
    end = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < end, (shadow(server), server.log[-10:])
        time.sleep(0.05)


def shadow(server: LiveServer) -> dict[str, Any]:
    return dict(server.get("/v1/models")[1]["shadow"])


def rows(project: Path) -> list[dict[str, Any]]:
    parts = sorted((project / "state" / "shadow").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def processes(server: LiveServer) -> list[int]:
    """Those of challengers that the server has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
            command = (status.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent.split()[1]) == server.process.pid and "watchnext.serving.challenger" in command:
            found.append(int(status.parent.name))
    return found


def test_both_slates_of_real_requests_are_kept(shadowed: LiveServer, serving_project: Path) -> None:
    """And what is not shown is not mirrored. Killed, it comes back; without the alias it ends and writes what it has."""
    before = shadow(shadowed)
    shown = {
        slate["request_id"]: slate
        for user in range(20, 30)
        for slate in [shadowed.recommend(user, how_many=7, context={"surface": "home"})]
    }
    shadowed.recommend(20, record=False)
    until(lambda: shadow(shadowed)["answered"] == before["answered"] + len(shown), shadowed)
    (process,) = processes(shadowed)
    os.kill(process, signal.SIGKILL)
    until(lambda: shadow(shadowed)["starts"] == before["starts"] + 1, shadowed)
    until(lambda: processes(shadowed) not in ([], [process]), shadowed)
    late = shadowed.recommend(30, how_many=7)
    until(lambda: shadow(shadowed)["answered"] == before["answered"] + len(shown) + 1, shadowed)
    assert "watchnext_challenger_version 2.0" in shadowed.get("/metrics")[1]

    assign(serving_project, "challenger", None)
    until(lambda: not processes(shadowed), shadowed)
    until(lambda: bool(rows(serving_project)), shadowed)
    kept = {row["request_id"]: row for row in rows(serving_project)}
    # Those from before the kill are there only if it came later than they are written (30 s).
    assert {late["request_id"]} <= set(kept) <= {late["request_id"], *shown}
    row = kept[late["request_id"]]
    assert (row["champion_version"], row["challenger_version"], row["error"]) == (1, 2, None)
    assert row["champion_video_ids"] == [video["video_id"] for video in late["videos"]]
    assert row["champion_expected_watch_time_s"] == [
        video["expected_watch_time_s"] for video in late["videos"]
    ]
    assert row["challenger_expected_watch_time_s"] == [
        pytest.approx(600.0 - watch_time_s(video_id)) for video_id in row["challenger_video_ids"]
    ]
    assert len(row["challenger_video_ids"]) == 7
    assert row["champion_took_ms"] > 0.0
    assert row["challenger_took_ms"] > 0.0
    assign(serving_project, "challenger", 2)


def test_a_challenger_that_hangs_stops_nobody(shadowed: LiveServer) -> None:
    """It is frozen: what it would have got is dropped, and counted, once queue and pipe are full. Then it goes on."""
    (process,) = processes(shadowed)
    before = shadow(shadowed)
    os.kill(process, signal.SIGSTOP)
    try:
        sent = 0
        while shadow(shadowed)["dropped"] == before["dropped"]:
            for user in range(50):
                slate = shadowed.recommend(f"frozen {user}", how_many=100)
                assert len(slate["videos"]) == 100
            sent += 50
            assert sent < 1_000
        counts = shadow(shadowed)
        assert counts["offered"] + counts["dropped"] == before["offered"] + before["dropped"] + sent
    finally:
        os.kill(process, signal.SIGCONT)
    until(lambda: shadow(shadowed)["answered"] > before["answered"], shadowed)


def shadow_row(number: int) -> dict[str, Any]:
    return {"request_id": str(number), "at": number, "user_id": "7", "champion_video_ids": [number]}


def test_files_take_turns_and_the_oldest_go(tmp_path: Path) -> None:
    log = ShadowLog(tmp_path / "shadow", integer_video_ids=True, rows_per_file=10, every_s=1e9, keep_files=3)
    for number in range(47):
        log.add(shadow_row(number))
    assert (log.written, log.lost) == (40, 0)
    log.flush()
    parts = sorted((tmp_path / "shadow").iterdir())
    assert [pq.read_metadata(part).num_rows for part in parts] == [10, 10, 7]
    kept = pa.concat_tables([pq.read_table(part) for part in parts])
    assert kept["request_id"].to_pylist() == [str(number) for number in range(20, 47)]
    assert kept["champion_video_ids"].to_pylist() == [[number] for number in range(20, 47)]


def test_rows_are_written_when_they_have_waited_long_enough(tmp_path: Path) -> None:
    log = ShadowLog(tmp_path, integer_video_ids=False, every_s=0.05)
    log.add({"request_id": "1", "challenger_video_ids": ["a"]})
    assert log.written == 0
    time.sleep(0.06)
    log.tick()
    assert log.written == 1


def test_rows_that_cannot_be_written_are_counted_and_nothing_else(tmp_path: Path) -> None:
    """A full disk, here a folder that cannot be made; then there is room again."""
    (tmp_path / "shadow").write_text("in the way")
    log = ShadowLog(tmp_path / "shadow", integer_video_ids=True, rows_per_file=2)
    for number in range(4):
        log.add(shadow_row(number))
    assert (log.written, log.lost) == (0, 4)
    (tmp_path / "shadow").unlink()
    for number in range(2):
        log.add(shadow_row(number))
    assert (log.written, log.lost) == (2, 4)
