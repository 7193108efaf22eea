"""What a server logged of its live shadow: both answers to the same requests, as evidence that can veto."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from watchnext.decisions.overlap import rank_biased_overlap, slate_overlap
from watchnext.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = (
    "at",
    "champion_version",
    "champion_video_ids",
    "champion_took_ms",
    "challenger_version",
    "challenger_video_ids",
    "challenger_took_ms",
    "error",
)


def live_figures(directory: Path, *, champion: int, challenger: int) -> dict[str, float]:
    """Overlap, errors and latency of both on the live requests that they answered together.

    Rows of other versions, which a log that has seen several challengers holds, are counted and left out.

    Args:
        directory: of the shadow log.
        champion: number of the version.
        challenger: number of the version.

    Returns:
        `live_requests`, `live_requests_of_other_versions`, `live_slate_overlap`, `live_rank_biased_overlap`, and of both
        `..._live_errors` (the champion's are 0: what it could not answer is not mirrored), `..._live_latency_p50_ms`,
        `..._live_latency_p99_ms`.

    Raises:
        InputError: there are no rows of these two, or a latency is no number of milliseconds.
    """
    import numpy as np
    import pyarrow.compute as pc

    log = read_parts(directory, _COLUMNS)
    both = pc.and_(
        pc.equal(log["champion_version"], champion), pc.equal(log["challenger_version"], challenger)
    )
    ours = log.filter(both)
    if ours.num_rows == 0:
        versions = set(
            zip(log["challenger_version"].to_pylist(), log["champion_version"].to_pylist(), strict=True)
        )
        raise InputError(
            f"the shadow log is not of version {challenger} beside version {champion}",
            where=str(directory),
            offenders=[f"version {one} beside version {other}" for one, other in sorted(versions)[:3]],
            remedy="let the server mirror requests to this challenger",
        )
    figures = {
        "live_requests": float(ours.num_rows),
        "live_requests_of_other_versions": float(log.num_rows - ours.num_rows),
    }
    for who in ("champion", "challenger"):
        took_ms = pc.fill_null(ours[f"{who}_took_ms"], np.nan).to_numpy()
        wrong = np.flatnonzero(~(np.isfinite(took_ms) & (took_ms >= 0)))
        if len(wrong):
            raise InputError(
                f"{len(wrong)} of {len(took_ms)} latencies of the {who} are no numbers of milliseconds:"
                " a clock went backwards",
                where=str(directory),
                offenders=[f"row {row}: {took_ms[row]}" for row in wrong[:3]],
            )
        figures[f"{who}_live_latency_p50_ms"] = float(np.percentile(took_ms, 50))
        figures[f"{who}_live_latency_p99_ms"] = float(np.percentile(took_ms, 99))
    failed = ours["challenger_video_ids"].is_null().to_numpy()
    figures["champion_live_errors"] = 0.0
    figures["challenger_live_errors"] = float(failed.mean())
    slates = [
        (first or [], second or [])
        for first, second in zip(
            ours["champion_video_ids"].to_pylist(), ours["challenger_video_ids"].to_pylist(), strict=True
        )
    ]
    figures["live_slate_overlap"] = float(np.mean([slate_overlap(*pair) for pair in slates]))
    figures["live_rank_biased_overlap"] = float(np.mean([rank_biased_overlap(*pair) for pair in slates]))
    return figures


def digest_of_log(directory: Path) -> str | None:
    """sha256 over the files of a log: new rows are new evidence. None without any."""
    parts = sorted(directory.rglob("part-*.parquet"))
    if not parts:
        return None
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.relative_to(directory).as_posix().encode())
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()


def read_parts(directory: Path, columns: Sequence[str]) -> "pa.Table":
    """Columns of a log in parts.

    Raises:
        InputError: there are no rows, a file is damaged, or a column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for part in sorted(directory.glob("part-*.parquet")):
        try:
            table = pq.read_table(part)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                "a file of the log cannot be read", where=str(part), offenders=[error]
            ) from error
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise InputError("a file of the log lacks columns", where=str(part), offenders=missing)
        tables.append(table.select(list(columns)))
    found = pa.concat_tables(tables, promote_options="permissive") if tables else None
    if found is None or found.num_rows == 0:
        raise InputError("the log is empty", where=str(directory), remedy="serve, and export what was served")
    return found
