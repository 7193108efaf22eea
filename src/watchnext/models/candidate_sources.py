"""Candidates that need no training: the baseline that a retrieval model has to beat."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.errors import InputError


class MostPopular:
    """Videos by completed watches over the complete days before a day; the same list for everybody.

    Args:
        video_ids: [num_ranked] ids, integers or strings, the most popular first.
    """

    def __init__(self, video_ids: pa.Array) -> None:
        self.video_ids = video_ids

    @classmethod
    def from_statistics(cls, statistics: Path, day: datetime.date) -> "MostPopular":
        """Read the table `video_statistics` (its rows cover the 7 complete days before their `day`).

        The order is that of `by_popularity`.

        Args:
            statistics: directory of the table.
            day: the day to recommend on.

        Raises:
            InputError: there is no table, or it has no rows of that day.
        """
        parts = sorted(statistics.glob("part-*.parquet"))
        if not parts:
            raise InputError(
                "there are no video statistics", where=str(statistics), remedy="run the stage featurize"
            )
        table = pa.concat_tables([pq.read_table(part, filters=[("day", "=", day)]) for part in parts])
        ranked = by_popularity(table)
        if len(ranked) == 0:
            raise InputError(
                f"no video has an event in the days before {day}",
                where=str(statistics),
                remedy="the logs must cover the days before the day that is judged",
            )
        return cls(ranked)

    def recommend(self, k: int) -> pa.Array:
        """The first `k` video ids."""
        return self.video_ids.slice(0, k)

    def places(self, video_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """[N] ids -> int64 [N] places on the list from 1; 0 where a video is not on it or the id is null."""
        found = pc.index_in(video_ids, value_set=self.video_ids, skip_nulls=True)
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1


def by_popularity(statistics: pa.Table) -> pa.Array:
    """Ids of videos, the most popular first: what the baseline ranks by, and what a slate is filled up with.

    Of videos with as many completed watches the one with more impressions comes first, then the smaller id.
    Videos without any event are left out.

    Args:
        statistics: one row per video: video_id, completed_watches, impressions.
    """
    seen = statistics.filter(
        pc.or_(pc.greater(statistics["completed_watches"], 0), pc.greater(statistics["impressions"], 0))
    )
    ordered = seen.sort_by(
        [("completed_watches", "descending"), ("impressions", "descending"), ("video_id", "ascending")]
    )
    return ordered["video_id"].combine_chunks()
