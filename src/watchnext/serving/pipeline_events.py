"""Fill a store from the tables of the pipeline, so that a server begins with what the logs know."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from watchnext import schema
from watchnext.console import track
from watchnext.errors import InputError
from watchnext.recommend.state import UserFacts
from watchnext.serving.events import EVENT_TABLES, Event, EventTable, id_of
from watchnext.serving.user_store import UserStore

_READ = {
    "history": ("user_id", "position", "video_id", "completed"),
    "watches": ("user_id", "video_id", "watched_at", "watch_time_s", "completed"),
    "impressions": (
        "request_id",
        "video_id",
        "user_id",
        "shown_at",
        "clicked",
        "watch_time_s",
        "device",
        "logged_in",
    ),
    "searches": ("user_id", "searched_at", "query"),
}
"""What features are made of, and the tables' keys."""

_ROWS_AT_ONCE = 10_000


def load_events(tables: Path, store: UserStore) -> dict[str, int]:
    """Put the events and the users of validated tables into a store. What it already has stays as it is.

    Args:
        tables: folder of tables as the stages ingest and validate leave them.
        store: where to.

    Returns:
        How many events of each table were new.

    Raises:
        InputError: there are no tables.
        StoreUnavailableError: the store cannot be written; what was loaded until then is kept.
    """
    if not any((tables / "watches").glob("part-*.parquet")):
        raise InputError(
            "there are no validated logs here", where=str(tables), remedy="run `dvc repro`, which makes them"
        )
    new: dict[str, int] = {}
    for table in EVENT_TABLES:
        parts = _parts(tables / table)
        if parts is None:
            continue
        new[table] = 0
        for batch in track(_batches(parts, _READ[table]), f"load-events: {table}, batches"):
            new[table] += sum(store.add([_event(table, row) for row in batch.to_pylist()]))
    users = _parts(tables / "users")
    if users is not None:
        columns = [name for name in users.schema.names if name != "signed_up_at"]
        further = [name for name in columns if name not in schema.USERS.column_names]
        for batch in _batches(users, columns):
            store.put_facts(
                {
                    str(row["user_id"]): UserFacts(
                        row.get("region"),
                        row.get("age_years"),
                        row.get("gender"),
                        {name: row[name] for name in further},
                    )
                    for row in batch.to_pylist()
                }
            )
    return new


def _event(table: EventTable, row: dict[str, Any]) -> Event:
    user_id = str(row.pop("user_id"))
    return Event(user_id, id_of(table, row), table, row)


def _parts(directory: Path) -> Any:
    parts = sorted(directory.glob("part-*.parquet"))
    return ds.dataset([str(part) for part in parts], format="parquet") if parts else None


def _batches(parts: Any, wanted: tuple[str, ...] | list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a table with instants as microseconds."""
    columns = [name for name in wanted if name in parts.schema.names]
    for batch in parts.to_batches(columns=columns, batch_size=_ROWS_AT_ONCE):
        for place, name in enumerate(columns):
            if name.endswith("_at"):
                instants = batch.column(place).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
                batch = batch.set_column(place, name, instants)
        if batch.num_rows:
            yield batch
