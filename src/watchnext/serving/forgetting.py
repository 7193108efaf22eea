"""Forget a user everywhere that this project writes, and say what is left to others.

The user state, the logs that servers wrote (`state/`) and the tables of the pipeline (`data/`) lose the user's rows. Copies
of such tables in DVC's cache are deleted: their names are digests, so they cannot be changed, and `dvc repro` makes what
it misses. The team's own logs are not touched: whoever is in them would come back with the next `dvc repro`, so the
files that hold the user are named. Models keep what they learned until they are trained anew.
"""

import csv
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.serving.user_store import UserStore

WRITTEN = ("state", "data")
"""Folders of a project that hold what it writes."""

_USER_COLUMNS = ("user_id",)
_PARQUET = b"PAR1"


@dataclass
class Forgotten:
    """What was found of a user.

    Attributes:
        events: in the user state.
        rewritten: files of this project -> rows that they lost.
        deleted: copies in DVC's cache.
        theirs: files of the team's own logs that hold the user.
    """

    events: int = 0
    rewritten: dict[Path, int] = field(default_factory=dict)
    deleted: list[Path] = field(default_factory=list)
    theirs: list[Path] = field(default_factory=list)


def forget(
    user_id: str,
    root: Path,
    store: UserStore,
    logs: Path | None = None,
    user_columns: Collection[str] = (),
    delimiters: Mapping[str, str] | None = None,
) -> Forgotten:
    """Delete a user from the project at `root`.

    Args:
        user_id: as text.
        root: the project.
        store: its user state.
        logs: the team's own logs, looked at and left alone; None: there are none.
        user_columns: further names that the user's column has there.
        delimiters: ending of a name -> what separates columns in such a file; a comma where it is not named.

    Raises:
        StoreUnavailableError: the user state cannot be written; nothing else was done.
        OSError: a file cannot be read or written; running it again goes on.
    """
    found = Forgotten(events=store.forget(user_id))
    theirs = None if logs is None else logs.resolve()
    for folder in WRITTEN:
        for path in sorted((root / folder).rglob("*.parquet")):
            if theirs is None or not path.resolve().is_relative_to(theirs):
                lost = _rewrite(path, user_id)
                if lost:
                    found.rewritten[path] = lost
    for path in _cached(root / ".dvc" / "cache"):
        if _holds(path, user_id, _USER_COLUMNS):
            path.unlink()
            found.deleted.append(path)
    if theirs is not None:
        names = (*_USER_COLUMNS, *user_columns)
        for path in sorted(one for one in theirs.rglob("*") if one.is_file()):
            delimiter = (delimiters or {}).get(path.suffix, ",")
            holds = _holds if path.suffix == ".parquet" else _text_holds
            if holds(path, user_id, names, delimiter):
                found.theirs.append(path)
    return found


def _rewrite(path: Path, user_id: str) -> int:
    """Rows that a file lost. It is replaced as a whole, or not at all."""
    if not _holds(path, user_id, _USER_COLUMNS):
        return 0
    source = pq.ParquetFile(path)
    staged = path.with_name(path.name + ".staging")
    lost = 0
    with pq.ParquetWriter(staged, source.schema_arrow, compression="zstd") as writer:
        for batch in source.iter_batches():
            kept = batch.filter(pc.invert(_is_user(batch, user_id, _USER_COLUMNS)))
            lost += batch.num_rows - kept.num_rows
            writer.write_batch(kept)
    staged.replace(path)
    return lost


def _holds(path: Path, user_id: str, names: Collection[str], delimiter: str = "") -> bool:
    """Whether a Parquet file has a row of the user; no file of another kind has."""
    del delimiter
    try:
        source = pq.ParquetFile(path)
    except pa.ArrowInvalid:
        return False
    columns = [name for name in source.schema_arrow.names if name in names]
    return bool(columns) and any(
        pc.any(_is_user(batch, user_id, columns)).as_py() for batch in source.iter_batches(columns=columns)
    )


def _is_user(batch: pa.RecordBatch, user_id: str, names: Collection[str]) -> Any:
    """bool [num_rows]: which rows are of the user. An id that is a number in the file is the user's as that number."""
    is_user = pa.array([False] * batch.num_rows)
    for name in names:
        if name in batch.schema.names:
            same = pc.equal(batch.column(name).cast(pa.string()), user_id)
            is_user = pc.or_(is_user, pc.fill_null(same, False))
    return is_user


def _text_holds(path: Path, user_id: str, names: Collection[str], delimiter: str) -> bool:
    """Whether a file of separated values has a row of the user; without a header all columns are looked at."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        header = next(rows, [])
        places = [place for place, name in enumerate(header) if name in names] or range(len(header))
        return any(place < len(row) and row[place] == user_id for row in rows for place in places)


def _cached(directory: Path) -> Iterator[Path]:
    """Parquet files in DVC's cache, which go by their digests."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(4) == _PARQUET:
                    yield path
