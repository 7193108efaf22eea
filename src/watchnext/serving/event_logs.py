"""What a server kept, written as tables: logs that `ingest` reads, and the log of a live experiment.

The user state is the truth: what was acknowledged is in it, whatever happened to the process since, so logs are written
from it as a whole, again and again. Two runs without an event between them write the same rows.

Beside the columns of the schema, impressions have `model_version`, `expected_watch_time_s` and, of experiments, `experiment`
and `arm`.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from watchnext import schema
from watchnext.errors import InputError
from watchnext.serving.events import rows_of
from watchnext.serving.experiment import ExperimentId
from watchnext.serving.user_store import UserStore

LOGS = ("impressions", "watches", "searches")
_ROWS_AT_ONCE = 50_000
_INSTANT = pa.timestamp("us", tz="UTC")
_KINDS = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "instant": _INSTANT,
    "list[string]": pa.list_(pa.string()),
    "list[float]": pa.list_(pa.float64()),
}
_FURTHER = {
    "impressions": {
        "model_version": pa.int64(),
        "expected_watch_time_s": pa.float64(),
        "experiment": pa.string(),
        "arm": pa.string(),
    }
}


def export_events(
    store: UserStore, logs: Path, experiment: Path, earlier: Path | None = None
) -> dict[str, int]:
    """Write what the server showed and was told, in place of what was written before.

    What `load-events` brought is left out: the pipeline has it already.

    Args:
        store: the user state.
        logs: gets `impressions/`, `watches/` and `searches/`; with `earlier` all tables.
        experiment: gets `served/`, a row per slate of an experiment, and `watched/`, a row per watch that its users told of.
        earlier: tables as validate leaves them, written alongside in the same form: one source for `ingest`.

    Returns:
        Rows of each table, without the earlier ones.

    Raises:
        InputError: video ids are numbers in one place and text in another.
        StoreUnavailableError: the store cannot be read; what was written before stays.
    """
    with contextlib.ExitStack() as stack:
        kind: pa.DataType | None = None if earlier is None else _video_id_type(earlier)
        tables: dict[str, _Table] = {}

        def table(name: str, directory: Path, columns: dict[str, pa.DataType]) -> _Table:
            if name not in tables:
                tables[name] = stack.enter_context(_Table(directory, pa.schema(list(columns.items()))))
            return tables[name]

        for events in store.walk():
            rows = {
                name: [row for row in those if "told_at" in row]
                for name, those in rows_of(events).items()
                if name in LOGS
            }
            found = {type(row["video_id"]) for those in rows.values() for row in those if "video_id" in row}
            for one in found:
                now = pa.int64() if one is int else pa.string()
                if kind is not None and now != kind:
                    raise InputError(
                        "video ids are numbers in one place and text in another",
                        where="the user state",
                        offenders=[events[0].user_id],
                        remedy="the state is of another catalogue: move it away",
                    )
                kind = now
            for name, those in rows.items():
                for row in those:
                    table(name, logs / name, _columns(name, kind or pa.string())).add(row)
            for name, made in _experiment_rows(rows):
                table(name, experiment / name, _experiment_columns(name, kind or pa.string())).add(made)
        for name in LOGS:
            table(name, logs / name, _columns(name, kind or pa.string()))
        for name in ("served", "watched"):
            table(name, experiment / name, _experiment_columns(name, kind or pa.string()))
        counts = {name: one.rows for name, one in tables.items()}
        if earlier is not None:
            for name in schema.TABLES:
                for batch in _batches(earlier / name):
                    kept = _columns(name, kind or pa.string())
                    if name == "users":
                        names = [one for one in batch.schema.names if one not in kept]
                        kept |= {one: pa.string() for one in names}
                    table(name, logs / name, kept).add_batch(batch)
    return counts


def _columns(name: str, video_id: pa.DataType) -> dict[str, pa.DataType]:
    """Columns of a table as they are written; ids but those of videos are text."""

    def kind(column: schema.Column) -> pa.DataType:
        if column.kind == "id":
            return video_id if column.id_space == "video" else pa.string()
        return _KINDS[column.kind]

    return {column.name: kind(column) for column in schema.TABLES[name].columns} | _FURTHER.get(name, {})


def _experiment_columns(name: str, video_id: pa.DataType) -> dict[str, pa.DataType]:
    if name == "served":
        return {
            "experiment_id": pa.string(),
            "mode": pa.string(),
            "challenger_share": pa.float64(),
            "at": _INSTANT,
            "user_id": pa.string(),
            "arm": pa.string(),  # of the user; null where slates are interleaved
            "champion_version": pa.int32(),
            "challenger_version": pa.int32(),
            "request_id": pa.string(),
            "video_ids": pa.list_(video_id),
            "teams": pa.list_(
                pa.string()
            ),  # which model each place is from; null but where they are interleaved
            "surface": pa.string(),
        }
    return {
        "experiment_id": pa.string(),
        "at": _INSTANT,
        "user_id": pa.string(),
        "video_id": video_id,
        "request_id": pa.string(),
        "watch_time_s": pa.float64(),
        "completed": pa.bool_(),
    }


def _experiment_rows(rows: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Slates of experiments that one user was shown, and watches since.

    A watch is of the experiment whose page it names, else of the one whose slate was the last before it. Clients tell when a
    watch ended, and clocks differ: one that named a page did not begin before it was shown.
    """
    pages: dict[str, list[dict[str, Any]]] = {}
    for row in rows.get("impressions", ()):
        if "experiment" in row:
            pages.setdefault(row["request_id"], []).append(row)
    began: list[tuple[int, str]] = []
    for request_id, page in pages.items():
        page.sort(key=lambda row: row["position"])
        first = page[0]
        one = ExperimentId.parse(first["experiment"])
        interleaved = one.mode == "interleave"
        began.append((first["shown_at"], first["experiment"]))
        yield (
            "served",
            {
                "experiment_id": first["experiment"],
                "mode": one.mode,
                "challenger_share": one.share,
                "at": first["shown_at"],
                "user_id": first["user_id"],
                "arm": None if interleaved else first["arm"],
                "champion_version": one.champion,
                "challenger_version": one.challenger,
                "request_id": request_id,
                "video_ids": [row["video_id"] for row in page],
                "teams": [row["arm"] for row in page] if interleaved else None,
                "surface": first["surface"],
            },
        )
    began.sort()
    place = 0
    for watch in rows.get("watches", ()):  # by instant
        while place < len(began) and began[place][0] <= watch["watched_at"]:
            place += 1
        named = pages.get(watch.get("request_id") or "")
        if named is not None:
            at = max(watch["watched_at"], named[0]["shown_at"])
            yield "watched", {**watch, "experiment_id": named[0]["experiment"], "at": at}
        elif place:
            yield "watched", {**watch, "experiment_id": began[place - 1][1], "at": watch["watched_at"]}


class _Table:
    """A folder of Parquet parts in the making; it takes the place of the one before when all is well."""

    def __init__(self, directory: Path, columns: pa.Schema) -> None:
        self.rows = 0
        self._directory = directory
        self._staging = directory.with_name(directory.name + ".staging")
        self._columns = columns
        self._waiting: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Table":
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(parents=True)
        self._writer = pq.ParquetWriter(
            self._staging / "part-00000.parquet", self._columns, compression="zstd"
        )
        return self

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self._waiting.append(row)
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Rows of an earlier table: columns that it lacks are null."""
        self._flush()
        assert self._writer is not None
        columns = [
            batch.column(name).cast(kind) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)
            for name, kind in zip(self._columns.names, self._columns.types, strict=True)
        ]
        self._writer.write_table(pa.table(columns, schema=self._columns))

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        assert self._writer is not None
        if failed is None:
            self._flush()
        self._writer.close()
        if failed is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        self._staging.rename(self._directory)

    def _flush(self) -> None:
        if self._waiting:
            assert self._writer is not None
            rows, self._waiting = self._waiting, []
            columns = {name: [row.get(name) for row in rows] for name in self._columns.names}
            self._writer.write_table(pa.table(columns, self._columns))


def _batches(directory: Path) -> Iterator[pa.RecordBatch]:
    for part in sorted(directory.glob("part-*.parquet")):
        yield from pq.ParquetFile(part).iter_batches(_ROWS_AT_ONCE)


def _video_id_type(tables: Path) -> pa.DataType:
    parts = sorted((tables / "videos").glob("part-*.parquet"))
    if not parts:
        raise InputError(
            "there are no validated tables here",
            where=str(tables),
            remedy="run `dvc repro`, which makes them",
        )
    kind = pq.read_schema(parts[0]).field("video_id").type
    return pa.int64() if pa.types.is_integer(kind) else pa.string()
