"""Logs of a server, as it writes them: live experiments, and the shadow's answers."""

import datetime as dt
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.serving.shadow_log import ShadowLog

BEGAN = dt.datetime(2026, 1, 9, tzinfo=dt.UTC)
_INSTANT = pa.timestamp("us", tz="UTC")
_SERVED = pa.schema(
    [
        ("experiment_id", pa.string()),
        ("mode", pa.string()),
        ("challenger_share", pa.float64()),
        ("at", _INSTANT),
        ("user_id", pa.string()),
        ("arm", pa.string()),
        ("champion_version", pa.int32()),
        ("challenger_version", pa.int32()),
        ("request_id", pa.string()),
        ("video_ids", pa.list_(pa.int64())),
        ("teams", pa.list_(pa.string())),
    ]
)
_WATCHED = pa.schema(
    [
        ("experiment_id", pa.string()),
        ("at", _INSTANT),
        ("user_id", pa.string()),
        ("video_id", pa.int64()),
        ("request_id", pa.string()),
        ("watch_time_s", pa.float64()),
    ]
)


def experiment_rows(
    *, users: int, gain: float, versions: tuple[int, int] = (1, 2), mode: str = "ab", share: float = 0.5
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two days of users who are served once a day and watch an exponential time, `gain` times as long of the challenger."""
    rng = np.random.default_rng(users)
    served, watched = [], []
    for user in range(users):
        arm = "challenger" if rng.random() < share else "champion"
        for day in range(2):
            request = f"{user}-{day}"
            at = BEGAN + dt.timedelta(days=day, seconds=user)
            teams = ["challenger", "champion"] if rng.random() < 0.5 else ["champion", "challenger"]
            served.append(
                {
                    "experiment_id": "one",
                    "mode": mode,
                    "challenger_share": share,
                    "at": at,
                    "user_id": str(user),
                    "arm": arm if mode == "ab" else None,
                    "champion_version": versions[0],
                    "challenger_version": versions[1],
                    "request_id": request,
                    "video_ids": [1, 2],
                    "teams": None if mode == "ab" else teams,
                }
            )
            for place in range(2):
                whose = arm if mode == "ab" else teams[place]
                watched.append(
                    {
                        "experiment_id": "one",
                        "at": at + dt.timedelta(minutes=1 + place),
                        "user_id": str(user),
                        "video_id": place + 1,
                        "request_id": request,
                        "watch_time_s": rng.exponential(60.0) * (gain if whose == "challenger" else 1.0),
                    }
                )
    return served, watched


def write_log(directory: Path, served: list[dict[str, Any]], watched: list[dict[str, Any]]) -> Path:
    """The two folders of a log, written anew."""
    shutil.rmtree(directory, ignore_errors=True)
    for name, rows, schema in (("served", served, _SERVED), ("watched", watched, _WATCHED)):
        (directory / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), directory / name / "part-00000.parquet")
    return directory


def write_experiment(directory: Path, **how: Any) -> Path:
    """The log of `experiment_rows`."""
    return write_log(directory, *experiment_rows(**how))


def write_shadow_log(
    directory: Path, *, versions: tuple[int, int], failed: int = 0, changes: Mapping[str, Any] | None = None
) -> Path:
    """Forty requests that both answered, the challenger all but `failed` of them."""
    log = ShadowLog(directory, integer_video_ids=True)
    for number in range(40):
        row: dict[str, Any] = {
            "request_id": str(number),
            "at": BEGAN + dt.timedelta(seconds=number),
            "user_id": "1",
            "how_many": 4,
            "champion_version": versions[0],
            "champion_video_ids": [1, 2, 3, 4],
            "champion_took_ms": 10.0 + number,
            "challenger_version": versions[1],
            "challenger_took_ms": 20.0 + number,
        }
        if number < failed:
            row["error"] = "ValueError: no"
        else:
            row["challenger_video_ids"] = [1, 2, 5, 6]
        log.add({**row, **(changes or {})})
    log.flush()
    return directory
