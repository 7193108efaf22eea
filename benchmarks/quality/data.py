"""From validated tables to folds: which events are predicted, and what was known at the instant of each."""

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.quality.folds import Fold, Lists
from watchnext.data.split import day_begins_at, whole_days
from watchnext.errors import InputError
from watchnext.features.history import end_of_watch, to_microseconds
from watchnext.features.retrieval_examples import REQUEST_LASTS_S, UNRECOMMENDED_ORIGINS

MICROSECONDS_PER_DAY = 86_400_000_000


class Logs:
    """The validated tables as arrays of dense codes.

    Args:
        tables: what the stage `validate` leaves.

    Attributes:
        user_ids: sorted ids; user code u is user_ids[u].
        video_ids: sorted ids; video code v is video_ids[v].
        days: whole local days, ascending.
    """

    def __init__(self, tables: Path) -> None:
        source = json.loads((tables / "source.json").read_text())
        self.source: str = source["source"]
        self.time_zone: str = source["time_zone"]
        users, videos = _read(tables, "users"), _read(tables, "videos")
        self.user_ids = np.sort(users["user_id"].to_numpy())
        self.video_ids = np.sort(videos["video_id"].to_numpy())
        self.user_features = _categories(users.set_index("user_id").loc[self.user_ids])

        shown = _read(tables, "impressions")[["user_id", "video_id", "shown_at", "clicked"]]
        self.shown = self._coded(shown, "shown_at").sort_values(["user", "at"], kind="stable")
        watches = self._coded(_read(tables, "watches"), "watched_at")
        watches["sought"] = (
            watches["origin"].isin(UNRECOMMENDED_ORIGINS) if "origin" in watches.columns else False
        )
        watches["end"] = [
            end_of_watch(at, None if np.isnan(lasted) else lasted)
            for at, lasted in zip(watches["at"].tolist(), watches["watch_time_s"].tolist(), strict=True)
        ]
        self.watches = watches.sort_values(["user", "at", "video"], kind="stable")
        self.history = None
        if (tables / "history").is_dir():
            history = _read(tables, "history")
            if "completed" not in history.columns:
                history["completed"] = True
            history["completed"] = history["completed"].fillna(True).astype(bool)
            self.history = self._coded(history, None).sort_values(["user", "position"], kind="stable")
        local = pd.to_datetime(self.shown["at"], unit="us", utc=True).dt.tz_convert(self.time_zone).dt.date
        self.days = whole_days(local.value_counts().to_dict())

    def _coded(self, table: pd.DataFrame, instant: str | None) -> pd.DataFrame:
        table["user"] = np.searchsorted(self.user_ids, table["user_id"].to_numpy()).astype(np.int32)
        table["video"] = np.searchsorted(self.video_ids, table["video_id"].to_numpy()).astype(np.int32)
        if instant is not None:
            table["at"] = table[instant].dt.as_unit("us").astype("int64")
        return table

    def begins_at_us(self, day: dt.date) -> int:
        """Microseconds since 1970 UTC at which the local day begins."""
        return to_microseconds(day_begins_at(day, self.time_zone))

    def fold(self, day: dt.date, max_events: int | None = None) -> Fold:
        """Everything before `day` to learn from, and the completed watches of `day` to predict.

        Args:
            day: a local day.
            max_events: predict only so many, spread evenly over the day.

        Raises:
            InputError: nothing was completed before the day, or on it.
        """
        begin, end = self.begins_at_us(day), self.begins_at_us(day + dt.timedelta(days=1))
        completed = self.watches[self.watches["completed"]]
        past = completed[completed["at"] < begin]
        parts = [pd.DataFrame({"user": past["user"], "video": past["video"], "at": past["at"]})]
        if self.history is not None:
            before = self.history[self.history["completed"]]
            # Stable, and first: rows from before the logs come before those of the logs, in their order.
            parts.insert(0, pd.DataFrame({"user": before["user"], "video": before["video"], "at": np.nan}))
        train = pd.concat(parts).sort_values("user", kind="stable")
        events = completed[(completed["at"] >= begin) & (completed["at"] < end)].sort_values(
            ["at", "user", "video"], kind="stable"
        )
        if max_events is not None and len(events) > max_events:
            events = events.iloc[np.linspace(0, len(events) - 1, max_events).astype(np.int64)]
        if train.empty or events.empty:
            raise InputError(
                f"no watch was completed {'before' if train.empty else 'on'} {day}",
                where="watches.completed",
                remedy="the benchmark predicts the completed watches of the last whole day of the logs",
            )
        asked_at, context, watched, shown = self._known_before(events)
        return Fold(
            num_users=len(self.user_ids),
            num_items=len(self.video_ids),
            train_user=train["user"].to_numpy(np.int32),
            train_item=train["video"].to_numpy(np.int32),
            train_age_days=((begin - train["at"].to_numpy(float)) / MICROSECONDS_PER_DAY).astype(np.float32),
            event_user=events["user"].to_numpy(np.int32),
            event_item=events["video"].to_numpy(np.int32),
            event_at_us=events["at"].to_numpy(np.int64),
            event_asked_at_us=asked_at,
            context=context,
            watched=watched,
            shown=shown,
            user_features=self.user_features,
        )

    def _known_before(self, events: pd.DataFrame) -> tuple[np.ndarray, Lists, Lists, Lists]:
        """When each event was asked for, and the lists of `Fold`, each from what lies strictly before that.

        The instants are those of the project's own examples (`retrieval_examples.with_asked_at`): a watch that a page
        led to is asked for when the page was shown, any other when it began. A watch is completed once it has ended.
        """
        watches, shown = _ByUser(self.watches), _ByUser(self.shown)
        history = None if self.history is None else _ByUser(self.history)
        asked_at = np.empty(len(events), np.int64)
        lists: tuple[list[np.ndarray], ...] = ([], [], [])
        named = zip(*(events[name].tolist() for name in ("user", "at", "video", "sought")), strict=True)
        for place, (user, at, label, sought) in enumerate(named):
            own, pages = watches(user), shown(user)
            of_label = pages[(pages["video"] == label) & (pages["at"] <= at)]
            asked = at
            if len(of_label) and not sought:
                last = of_label["at"][-1]
                led = of_label["clicked"][of_label["at"] == last].any()
                asked = last if led and last >= at - int(REQUEST_LASTS_S * 1_000_000) else at
            asked_at[place] = asked
            ended = own[own["completed"] & (own["end"] < asked)]
            begun = own["video"][own["at"] < asked]
            seen = pages["video"][pages["at"] < asked]
            earlier = earlier_shown = np.empty(0, np.int32)
            if history is not None:
                rows = history(user)
                earlier_shown, earlier = rows["video"], rows["video"][rows["completed"]]
            in_order = ended["video"][np.lexsort((ended["video"], ended["end"]))]
            lists[0].append(np.concatenate([earlier, in_order]))
            lists[1].append(np.unique(np.concatenate([earlier, begun])))
            lists[2].append(np.unique(np.concatenate([earlier_shown, begun, seen])))
        return asked_at, Lists.of(lists[0]), Lists.of(lists[1]), Lists.of(lists[2])


class _ByUser:
    """A table sorted by user, cut by user code: structured arrays."""

    def __init__(self, table: pd.DataFrame) -> None:
        kinds = {"video": np.int32, "at": np.int64, "end": np.int64, "completed": bool, "clicked": bool}
        fields = [(name, kind) for name, kind in kinds.items() if name in table.columns]
        self.rows = np.empty(len(table), dtype=fields)
        for name, kind in fields:
            self.rows[name] = table[name].to_numpy(kind)
        self.user = table["user"].to_numpy()

    def __call__(self, user: int) -> np.ndarray:
        begin, end = np.searchsorted(self.user, [user, user + 1])
        return self.rows[begin:end]


def _read(tables: Path, name: str) -> pd.DataFrame:
    return pq.read_table(tables / name).to_pandas()


def _categories(users: pd.DataFrame) -> np.ndarray:
    """int32 [num_users, num_columns]: codes from 1 of the text columns of the users, 0 = null."""
    columns: Sequence[str] = [name for name in users.columns if users[name].dtype.kind not in "fiM"]
    if not columns:
        return np.zeros((len(users), 0), np.int32)
    return np.stack([pd.factorize(users[name], sort=True)[0] + 1 for name in columns], axis=1).astype(
        np.int32
    )
