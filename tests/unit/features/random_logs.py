"""Small random logs with many ties in time: instants of a day lie on a few points one millisecond apart.

Watches last nothing, some of those milliseconds, about half a microsecond more, minutes, or until the next day, so
that they end between later events, at the same instants, and after midnight.
"""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BEGIN = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
INSTANT = pa.timestamp("us", tz="UTC")

Rows = dict[str, list[dict[str, Any]]]

WATCH_TIMES_S = (0.0, 0.001, 0.002, 0.0030005, 0.00499951, 31.4159, 70_000.0)

TYPES = {
    "videos": {
        "topics": pa.list_(pa.string()),
        "duration_s": pa.float64(),
        "uploaded_at": INSTANT,
        "language": pa.string(),
    },
    "users": {"region": pa.string(), "gender": pa.string(), "age_years": pa.float64(), "plan": pa.string()},
    "impressions": {
        "shown_at": INSTANT,
        "surface": pa.string(),
        "position": pa.int64(),
        "device": pa.string(),
        "logged_in": pa.bool_(),
        "clicked": pa.bool_(),
        "watch_time_s": pa.float64(),
    },
    "watches": {
        "watched_at": INSTANT,
        "watch_time_s": pa.float64(),
        "completed": pa.bool_(),
        "origin": pa.string(),
    },
    "searches": {"searched_at": INSTANT, "query": pa.string()},
    "history": {"position": pa.int64(), "completed": pa.bool_()},
}


def make_rows(
    seed: int,
    *,
    users: int = 6,
    videos: int = 8,
    days: int = 6,
    events_per_day: int = 40,
    strings: bool = False,
) -> Rows:
    """Rows of every table.

    Args:
        seed: of the draw.
        users: number of users, with ids from 0.
        videos: number of videos, with ids from 100; some lack channel, topics, length or upload.
        days: number of days from BEGIN, UTC.
        events_per_day: impressions (in pages of one user) and watches each, a quarter as many searches.
        strings: ids of users and videos are strings.
    """
    random = np.random.default_rng(seed)

    def pick(*options: Any) -> Any:
        return options[random.integers(len(options))]

    def user() -> Any:
        number = int(random.integers(users))
        return f"ü{number}" if strings else number

    def video() -> Any:
        number = 100 + int(random.integers(videos))
        return f"v{number}" if strings else number

    def instant(day: int) -> dt.datetime:
        return BEGIN + dt.timedelta(days=day, hours=5, milliseconds=int(random.integers(12)))

    rows: Rows = {name: [] for name in TYPES}
    for number in range(100, 100 + videos):
        rows["videos"].append(
            {
                "video_id": f"v{number}" if strings else number,
                "channel_id": pick(None, 1, 2, 2),
                "topics": pick(None, [], ["music"], ["music", "news"], ["games", "news", "music"]),
                "duration_s": pick(None, 10.5, 60.0),
                "uploaded_at": pick(None, BEGIN - dt.timedelta(days=3), BEGIN + dt.timedelta(days=2)),
                "language": pick(None, "en", "fr"),
            }
        )
    for number in range(users):
        user_id = f"ü{number}" if strings else number
        rows["users"].append(
            {
                "user_id": user_id,
                "region": pick(None, "north", "south"),
                "gender": pick(None, "female", "male", "other"),
                "age_years": pick(None, 31.0, 117.0),
                "plan": pick(None, "free", "paid"),
            }
        )
        for position in range(int(random.integers(6))):
            rows["history"].append(
                {
                    "user_id": user_id,
                    "position": 3 + 2 * position,
                    "video_id": video(),
                    "completed": pick(True, False),
                }
            )
    seen: set[Any] = set()
    request = 0
    for day in range(days):
        for _ in range(events_per_day // 4):
            request += 1
            page = {
                "request_id": request,
                "user_id": user(),
                "shown_at": instant(day),
                "surface": pick("home", "next", None),
                "device": pick("tv", "phone"),
                "logged_in": pick(True, False, None),
            }
            shown = list(dict.fromkeys(video() for _ in range(4)))
            for position, video_id in enumerate(shown):
                clicked = bool(random.random() < 0.4)
                time_s = pick(*WATCH_TIMES_S) if clicked else 0.0
                rows["impressions"].append(
                    {
                        **page,
                        "video_id": video_id,
                        "position": position,
                        "seed_video_id": shown[0] if position % 2 else None,
                        "clicked": clicked,
                        "watch_time_s": time_s,
                    }
                )
        for _ in range(events_per_day):
            watch = {"user_id": user(), "video_id": video(), "watched_at": instant(day)}
            if tuple(watch.values()) not in seen:
                seen.add(tuple(watch.values()))
                outcome = {
                    "watch_time_s": pick(None, *WATCH_TIMES_S),
                    "completed": pick(True, False),
                    "origin": pick("home", None),
                }
                rows["watches"].append({**watch, **outcome})
        for _ in range(events_per_day // 4):
            search = {"user_id": user(), "searched_at": instant(day)}
            if tuple(search.values()) not in seen:
                seen.add(tuple(search.values()))
                query = pick("Piano", "piano  Lesson", "how-to: knit", "", " Ünder 7 seas", "a b a b")
                rows["searches"].append({**search, "query": query})
    return rows


def write_rows(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    directory: Path,
    without: Sequence[str] = (),
    time_zone: str = "UTC",
) -> Path:
    """Store rows as the stage validate does; `without` names columns, as table.column, and tables to leave out."""
    for name, types in TYPES.items():
        if name in without:
            continue
        table = pa.Table.from_pylist(list(rows[name])) if rows[name] else pa.table({})
        columns = {}
        for column in table.column_names:
            if f"{name}.{column}" not in without:
                columns[column] = table[column].cast(types[column]) if column in types else table[column]
        if name == "videos" and pa.types.is_null(columns["channel_id"].type):
            columns["channel_id"] = columns["channel_id"].cast(pa.int64())
        if not columns:
            continue
        (directory / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), directory / name / "part-00000.parquet")
    source = {"source": "simulated", "time_zone": time_zone, "digest": "0" * 64, "tables": {}}
    (directory / "source.json").write_text(json.dumps(source))
    return directory
