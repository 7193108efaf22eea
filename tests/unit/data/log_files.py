"""Small logs as files, for the tests of sources and ingest: two users, two videos, two pages."""

import csv
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.engine import EngineParams
from watchnext.errors import InputError
from watchnext.stages.ingest import Params, ingest

BEGIN_AT = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
BEGIN_MS = 1_772_366_400_000


def at(minutes: float) -> dt.datetime:
    return BEGIN_AT + dt.timedelta(minutes=minutes)


def schema_form() -> dict[str, list[dict[str, Any]]]:
    """The tables that are required, in schema form."""
    clicked, passed_over = {"clicked": True, "watch_time_s": 30.0}, {"clicked": False, "watch_time_s": 0.0}
    return {
        "videos": [
            {"video_id": 1, "channel_id": 10, "topics": ["a", "b"], "duration_s": 60.0, "uploaded_at": at(-100)},
            {"video_id": 2, "channel_id": 11, "topics": [], "duration_s": None, "uploaded_at": None},
        ],
        "users": [{"user_id": 7, "region": "de"}, {"user_id": 8, "region": None}],
        "impressions": [
            {"request_id": "p1", "video_id": 1, "user_id": 7, "shown_at": at(0), "position": 0, **clicked},
            {"request_id": "p1", "video_id": 2, "user_id": 7, "shown_at": at(0), "position": 1, **passed_over},
            {"request_id": "p2", "video_id": 2, "user_id": 8, "shown_at": at(5), "position": 0, **passed_over},
        ],
        "watches": [
            {"user_id": 7, "video_id": 1, "watched_at": at(0), "watch_time_s": 30.0, "completed": False},
            {"user_id": 8, "video_id": 1, "watched_at": at(9), "watch_time_s": 60.0, "completed": True},
        ],
    }  # fmt: skip


def write_schema_form(folder: Path, tables: dict[str, list[dict[str, Any]]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (schema_form() if tables is None else tables).items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def write_csv(
    path: Path, rows: Sequence[dict[str, Any]], encoding: str = "utf-8", delimiter: str = ","
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def own_csv(folder: Path) -> dict[str, Any]:
    """Logs as some team has them, as CSV under `folder`; returns the mapping that reads them."""
    write_csv(
        folder / "videos.csv",
        [
            {
                "id": 1,
                "channel": "c10",
                "tags": "a | b",
                "length_ms": 60_000,
                "published": "2026-02-20T08:00:00Z",
            },
            {"id": 2, "channel": "", "tags": "", "length_ms": "", "published": ""},
        ],
    )
    write_csv(
        folder / "users.csv",
        [
            {"uid": "u07", "country": "de", "plan": "free", "email": "x@example.org"},
            {"uid": "u08", "country": "NULL", "plan": "paid", "email": "y@example.org"},
        ],
    )
    write_csv(
        folder / "impressions.csv",
        [
            {
                "page": "p1",
                "id": 1,
                "uid": "u07",
                "ts": BEGIN_MS,
                "click": "yes",
                "seen_ms": 30_500,
                "note": "x",
            },
            {"page": "p1", "id": 2, "uid": "u07", "ts": BEGIN_MS, "click": "no", "seen_ms": 0, "note": ""},
            {
                "page": "p2",
                "id": 2,
                "uid": "u08",
                "ts": BEGIN_MS + 250,
                "click": "no",
                "seen_ms": 0,
                "note": "z",
            },
        ],
    )
    write_csv(
        folder / "watches.csv",
        [
            {"uid": "u07", "id": 1, "began": "2026-03-01 13:00:00", "seconds": 30.5, "done": 0},
            {"uid": "u08", "id": 1, "began": "2026-03-02 00:30:00", "seconds": "", "done": 1},
        ],
    )
    return {
        "videos": {
            "path": "videos.csv",
            "list_separator": "|",
            "columns": {
                "video_id": "id",
                "channel_id": "channel",
                "topics": "tags",
                "duration_s": {"column": "length_ms", "unit": "ms"},
                "uploaded_at": "published",
            },
        },
        "users": {
            "path": "users.csv",
            "missing": ["", "NULL"],
            "columns": {"user_id": "uid", "region": "country", "plan": "plan"},
        },
        "impressions": {
            "path": "impressions.csv",
            "columns": {
                "request_id": "page",
                "video_id": "id",
                "user_id": "uid",
                "shown_at": {"column": "ts", "unit": "ms"},
                "surface": {"value": "home"},
                "clicked": "click",
                "watch_time_s": {"column": "seen_ms", "unit": "ms"},
            },
        },
        "watches": {
            "path": "watches.csv",
            "columns": {
                "user_id": "uid",
                "video_id": "id",
                "watched_at": {"column": "began", "unit": "local"},
                "watch_time_s": "seconds",
                "completed": "done",
            },
        },
    }


KUAIRAND_COLUMNS = (
    *("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment"),
    *("is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time"),
    *("comment_stay_time", "is_profile_enter", "is_rand", "tab"),
)


def kuairand_log_row(user_id: int, video_id: int, time_ms: int, **changes: int) -> dict[str, int]:
    """One row of a KuaiRand log: neither clicked nor played, on surface 1."""
    row = dict.fromkeys(KUAIRAND_COLUMNS, 0)
    return {**row, "user_id": user_id, "video_id": video_id, "time_ms": time_ms, "tab": 1, **changes}


KUAIRAND_MS = 1_650_812_741_436
"""2022-04-24 23:05:41.436 in Beijing."""


def kuairand_log() -> list[dict[str, int]]:
    played = {"is_click": 1, "long_view": 1, "play_time_ms": 61_802}
    return [
        kuairand_log_row(5, 1, KUAIRAND_MS, **played),
        kuairand_log_row(5, 1, KUAIRAND_MS, **played),  # an exact duplicate
        kuairand_log_row(
            5, 1, KUAIRAND_MS, **played, hourmin=2300
        ),  # the same, but for a column that is not read
        kuairand_log_row(5, 2, KUAIRAND_MS, play_time_ms=1_800),  # passed over; the same page
        kuairand_log_row(5, 2, KUAIRAND_MS, tab=0),  # the same instant on another surface: another page
        kuairand_log_row(6, 2, KUAIRAND_MS + 60_000, is_click=1),  # a click without play time
        kuairand_log_row(6, 1, KUAIRAND_MS + 90_000, long_view=1, play_time_ms=49_109),  # long view, no click
    ]


def write_kuairand(folder: Path, log: Sequence[dict[str, int]] | None = None) -> Path:
    write_csv(folder / "log_standard_4_25_to_5_06_pure.csv", kuairand_log() if log is None else log)
    write_csv(
        folder / "user_features_pure.csv",
        [
            {"user_id": 5, "user_active_degree": "full_active", "is_video_author": 1, "fans_user_num": 150,
             "fans_user_num_range": "[100,1k)", "register_days": 799, "onehot_feat4": "4.0"},
            {"user_id": 6, "user_active_degree": "full_active", "is_video_author": 0, "fans_user_num": 1,
             "fans_user_num_range": "[1,10)", "register_days": 20, "onehot_feat4": ""},
        ],
    )  # fmt: skip
    write_csv(
        folder / "video_features_basic_pure.csv",
        [
            {"video_id": 1, "author_id": 70, "video_type": "NORMAL", "upload_dt": "2022-04-10",
             "video_duration": 87433.0, "tag": "39,43"},
            {"video_id": 2, "author_id": 71, "video_type": "AD", "upload_dt": "2022-04-09",
             "video_duration": "", "tag": ""},
        ],
    )  # fmt: skip
    # Averages over the whole month, test days included: must not be read, whatever is in it.
    (folder / "video_features_statistic_pure.csv").write_bytes(b"\xff\xfe not to be read")
    history = {
        "user_id": [5, 5, 6],
        "position": [3, 4, 0],
        "video_id": [2, 1, 2],
        "long_view": pa.array([1, 0, 1], pa.int8()),
        "is_like": pa.array([0, 0, 0], pa.int8()),
        "ambiguous_repeat": [True, True, False],
    }
    pq.write_table(pa.table(history), folder / "history_4_09_to_4_24.parquet")
    return folder


def run_ingest(logs: Path, out: Path, **settings: Any) -> dict[str, float | int | str]:
    """Run the stage as the runner does; outputs are `out/tables` and `out/report`."""
    out.mkdir(parents=True, exist_ok=True)
    return ingest(Params.model_validate(settings), EngineParams(), logs, out / "tables", out / "report")


def refusal(logs: Path, out: Path, **settings: Any) -> str:
    """What the user reads when the stage refuses the logs."""
    try:
        run_ingest(logs, out, **settings)
    except InputError as error:
        return str(error)
    raise AssertionError("the stage refused nothing")


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(out / "tables" / table).to_pylist()
