"""What champion and challenger answered to the same live requests, in Parquet files that take turns.

A file is written whole and then named, so that a reader never sees half of one, whenever the writer ends. The oldest
ones go when there are too many.
"""

import logging
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

log = logging.getLogger("watchnext.serving")

_ID_LIST = "ids"
_FIELDS: dict[str, Any] = {
    "request_id": pa.string(),
    "at": pa.timestamp("us", tz="UTC"),
    "user_id": pa.string(),
    "surface": pa.string(),
    "how_many": pa.int32(),
    "champion_version": pa.int32(),
    "champion_video_ids": _ID_LIST,
    "champion_expected_watch_time_s": pa.list_(pa.float64()),
    "champion_took_ms": pa.float64(),
    "challenger_version": pa.int32(),
    "challenger_video_ids": _ID_LIST,
    "challenger_expected_watch_time_s": pa.list_(pa.float64()),
    "challenger_took_ms": pa.float64(),
    "error": pa.string(),  # of the challenger; its slate is then null
}


class ShadowLog:
    """Rows on their way to files. Not for several threads.

    Args:
        directory: where to; `part-<instant>-<number>.parquet`.
        integer_video_ids: whether video ids are integers; text otherwise.
        rows_per_file: a file is written when so many rows wait,
        every_s: or when the first of them has waited for so long.
        keep_files: how many files are kept.

    Attributes:
        written: rows in files.
        lost: rows that could not be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        integer_video_ids: bool,
        rows_per_file: int = 1_000,
        every_s: float = 30.0,
        keep_files: int = 1_000,
    ) -> None:
        self.directory = directory
        self.written = 0
        self.lost = 0
        video_id = pa.int64() if integer_video_ids else pa.string()
        self._schema = pa.schema(
            [(name, pa.list_(video_id) if kind is _ID_LIST else kind) for name, kind in _FIELDS.items()]
        )
        self._rows_per_file = rows_per_file
        self._every_s = every_s
        self._keep_files = keep_files
        self._waiting: list[dict[str, Any]] = []
        self._since = time.monotonic()
        self._number = 0

    def add(self, row: dict[str, Any]) -> None:
        """One request; columns as above, those that are missing null."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(row)
        self.tick()

    def tick(self) -> None:
        """Write what is due; to be called now and then where no rows come."""
        if len(self._waiting) >= self._rows_per_file or (
            self._waiting and time.monotonic() - self._since >= self._every_s
        ):
            self.flush()

    def flush(self) -> None:
        """Write what waits. Where that fails (a full disk) the rows are lost and counted, and nothing else happens."""
        if not self._waiting:
            return
        rows, self._waiting = self._waiting, []
        self._number += 1
        path = self.directory / f"part-{time.time_ns() // 1000:017d}-{self._number:06d}.parquet"
        staged = path.with_suffix(".staging")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            table = pa.table(
                {field.name: [row.get(field.name) for row in rows] for field in self._schema}, self._schema
            )
            pq.write_table(table, staged, compression="zstd")
            staged.rename(path)
            for old in sorted(self.directory.glob("part-*.parquet"))[: -self._keep_files]:
                old.unlink(missing_ok=True)
        except (OSError, pa.ArrowException) as error:
            self.lost += len(rows)
            log.error("shadow rows are lost", extra={"rows": len(rows), "error": str(error)})
            try:
                staged.unlink(missing_ok=True)
            except OSError:
                return
        else:
            self.written += len(rows)
