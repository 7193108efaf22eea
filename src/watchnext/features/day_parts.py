"""Examples of one local day at a time: stored as a part of their own, and taken from an earlier run where they are the same.

The examples of a day are as of their instants: they depend on the events of the day and of the days before it, and on
facts about the users and videos of these events. When a day is appended to the logs, those of the days before are what
they were. `days.json` beside the examples says what those of each day were made from, as a digest that holds the digest of
the day before; a late event changes the digest of its day, and so of all days after it.
"""

import datetime as dt
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow.parquet as pq

from watchnext.data.split import local_day
from watchnext.engine import Engine
from watchnext.features.history import Logs

DAYS_FILE = "days.json"

_BENEATH = ("data/split.py", "engine.py", "schema.py")
"""Source files beside those of this package that decide what is computed."""

_LIBRARIES = ("duckdb", "ibis-framework")
_EVENTS = {"impressions": "shown_at", "watches": "watched_at", "searches": "searched_at"}
_BY_DAY = ("ranking_examples", "ranking_requests")
_EXAMPLES = (*_BY_DAY, "retrieval_examples")


@dataclass(frozen=True)
class EarlierDays:
    """What an earlier run left and a run of now may take.

    Attributes:
        directory: its features.
        before: the first day whose examples have to be made again.
    """

    directory: Path
    before: dt.date

    def part(self, table: str, day: dt.date) -> Path | None:
        """The file that holds `table` of a day, in whichever split the day was; None where there is none."""
        found = sorted((self.directory / table).glob(f"*/part-{part_number(day):05d}.parquet"))
        return found[0] if len(found) == 1 else None

    def examples(self, engine: Engine, splits: Iterable[str]) -> list[ir.Table]:
        """The stored retrieval examples of each of these splits that there are."""
        folders = (self.directory / "retrieval_examples" / split for split in splits)
        return [engine.read(folder) for folder in folders if any(folder.glob("part-*.parquet"))]


def part_number(day: dt.date) -> int:
    """The number of a day's part: 20260301 is the 1st of March 2026.

    >>> part_number(dt.date(2026, 3, 1))
    20260301
    """
    return day.year * 10_000 + day.month * 100 + day.day


def recipe(logs: Logs, settings: Mapping[str, Any]) -> str:
    """Digest of all that decides examples beside events and facts: settings, columns, source code, libraries.

    Args:
        logs: of the run.
        settings: of the run, as JSON holds them.
    """
    columns = {name: str(table.schema()) for name, table in logs.tables.items()}
    digest = hashlib.sha256()
    told = {"settings": settings, "columns": columns, "present": sorted(logs.present), "zone": logs.time_zone}
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    package = Path(__file__).parents[1]
    sources = [*sorted((package / "features").glob("*.py")), *(package / name for name in _BENEATH)]
    for source in sources:
        digest.update(source.read_bytes())
    for library in _LIBRARIES:
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


def day_digests(engine: Engine, logs: Logs) -> dict[dt.date, str]:
    """Local day -> digest of its events, of the facts about their users and videos, and of all days before it.

    Every event is hashed together with the rows of `users` and `videos` that it names and with what `history` has of its
    user, and the hashes of a day are added up: one pass over the logs, without an order.
    """
    prefixed = {
        name: logs.tables[f"{name}s"].rename(lambda column, name=name: f"{name} {column}")
        for name in ("user", "video")
    }
    if "history" in logs.tables:
        rows = logs.tables["history"]
        whole = ibis.struct({name: rows[name] for name in rows.columns})
        of_user = rows.group_by("user_id").aggregate(history_rows=rows.count(), history=whole.hash().sum())
    found: dict[dt.date, list[str]] = {}
    for name, instant in _EVENTS.items():
        if name not in logs.tables:
            continue
        events = logs.tables[name]
        if "day" not in events.columns:
            events = events.mutate(day=local_day(events[instant], logs.time_zone))
        for fact, facts in prefixed.items():
            key = f"{fact}_id"
            if key in events.columns:
                events = events.left_join(facts, [(key, f"{fact} {key}")])
        if "history" in logs.tables:
            events = events.left_join(of_user, "user_id").drop("user_id_right")
        for day, digest in engine.row_digests(events, "day").items():
            found.setdefault(day, []).append(f"{name} {digest}")
    before = ""
    chained = {}
    for day in sorted(found):
        before = hashlib.sha256("\n".join([before, day.isoformat(), *found[day]]).encode()).hexdigest()
        chained[day] = before
    return chained


def find_earlier(
    directory: Path | None, made_by: str, digests: Mapping[dt.date, str], days: Sequence[dt.date]
) -> EarlierDays | None:
    """The days that an earlier run left as this one would make them; None where the first of them is another already.

    Args:
        directory: features of the earlier run; None: there was none.
        made_by: `recipe` of this run.
        digests: `day_digests` of this run.
        days: of which examples are wanted, in order.
    """
    if directory is None or not (directory / DAYS_FILE).is_file():
        return None
    content = json.loads((directory / DAYS_FILE).read_text(encoding="utf-8"))
    if content["made_by"] != made_by:
        return None
    for name, digest in content["files"].items():
        path = directory / name
        if not path.is_file() or _sha256(path) != digest:
            return None
    found = EarlierDays(directory, days[0])
    for day in days:
        same = content["days"].get(day.isoformat()) == digests.get(day)
        if not same or not all(found.part(table, day) for table in _BY_DAY):
            break
        found = EarlierDays(directory, day + dt.timedelta(days=1))
    return None if found.before == days[0] else found


def write_days(features_dir: Path, made_by: str, digests: Mapping[dt.date, str]) -> None:
    """Store what a later run has to know to take examples of these features: see `find_earlier`."""
    files = [path for table in _EXAMPLES for path in sorted((features_dir / table).rglob("part-*.parquet"))]
    content = {
        "made_by": made_by,
        "days": {day.isoformat(): digest for day, digest in digests.items()},
        "files": {path.relative_to(features_dir).as_posix(): _sha256(path) for path in files},
    }
    (features_dir / DAYS_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class DayParts:
    """Writes tables of examples below `features_dir`, in each split one part per local day; on Spark, per bucket of users.

    Users are worked on in buckets; a day's part holds those of all buckets, in the order of one.

    Args:
        engine: the engine that holds the tables.
        features_dir: gets `<table>/<split>/part-<day>.parquet`.
        buckets: how many buckets there are.
        earlier: days that are taken from an earlier run.
    """

    def __init__(
        self, engine: Engine, features_dir: Path, *, buckets: int = 1, earlier: EarlierDays | None = None
    ) -> None:
        self._engine = engine
        self._directory = features_dir
        self._one = buckets == 1
        self._earlier = earlier
        self._scratch = features_dir / ".days"
        self._order: dict[tuple[str, str], Sequence[str]] = {}

    def makes(self, day: dt.date) -> bool:
        """Whether the examples of a day have to be made."""
        return self._earlier is None or day >= self._earlier.before

    def to_make(self, events: ir.Table) -> ir.Table:
        """Of events with a column `day`, those of days whose examples have to be made."""
        return events if self._earlier is None else events.filter(events.day >= self._earlier.before)

    def write(
        self,
        table: str,
        split: str,
        days: Sequence[dt.date],
        rows_of: Callable[[dt.date, dt.date], ir.Table],
        sort_by: Sequence[str],
        part: int,
        without: str = "",
    ) -> None:
        """Store what one bucket has of the days of a split.

        Args:
            table: name of its folder.
            split: name of the folder in it.
            days: of the split.
            rows_of: rows from a day to a day, both inclusive; not asked for days that are taken from an earlier run.
            sort_by: columns that order the rows totally.
            part: number of the bucket, from 0.
            without: columns with this prefix are left out of what is taken from an earlier run; empty: none.
        """
        self._order[table, split] = sort_by
        target = self._directory / table / split
        if self._engine.kind == "spark":
            # A job per day would cost more than the day, and nothing is ever taken from these.
            self._engine.write(rows_of(days[0], days[-1]), target, sort_by, part=part)
            return
        target.mkdir(parents=True, exist_ok=True)
        for day in days:
            number = part_number(day)
            if self.makes(day):
                if self._one:
                    self._engine.write(rows_of(day, day), target, sort_by, part=number)
                else:
                    folder = self._scratch / table / split / str(number)
                    self._engine.write(rows_of(day, day), folder, sort_by, part=part)
            elif part == 0:
                assert self._earlier is not None
                source = self._earlier.part(table, day)
                assert source is not None, "find_earlier looked for it"
                names = pq.read_schema(source).names
                kept = [name for name in names if not (without and name.startswith(without))]
                if kept == names:
                    shutil.copyfile(source, target / source.name)
                else:
                    stored = self._engine.backend.read_parquet(str(source))
                    self._engine.write(stored.select(kept), target, sort_by, part=number)

    def finish(self) -> dict[str, int]:
        """Bring the buckets of each day together. Returns <table>_<split> -> rows."""
        rows = {}
        for (table, split), sort_by in self._order.items():
            target = self._directory / table / split
            for folder in sorted((self._scratch / table / split).glob("*")):
                self._engine.write(self._engine.read(folder), target, sort_by, part=int(folder.name))
            parts = target.glob("part-*.parquet")
            rows[f"{table}_{split}"] = sum(pq.read_metadata(part).num_rows for part in parts)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return rows


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
