"""The figures in which logs of different worlds are compared, and pictures of them.

    python -m watchnext.data.simulation_report data/ingested ...

prints the figures of ingested logs side by side, as docs/simulator.md tabulates them.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.console import print_table, say

NEEDED = {
    "impressions": ["user_id", "video_id", "shown_at", "position", "clicked", "watch_time_s"],
    "watches": ["user_id", "video_id", "completed"],
    "videos": ["video_id", "duration_s", "uploaded_at"],
}
"""Tables and columns that the figures are made of; `position` and `uploaded_at` for the pictures alone."""

PERCENTILES = (10, 50, 90, 99)


def marginals(tables: Mapping[str, pa.Table]) -> dict[str, float]:
    """The figures of some logs; docs/simulator.md says what each is.

    Args:
        tables: `impressions`, `watches` and `videos` in the columns of the schema; see NEEDED.

    Returns:
        Name -> figure. Percentiles end in `_pNN`.
    """
    shown, watched = tables["impressions"], tables["watches"]
    clicks = shown.filter(shown["clicked"])
    of_user = np.sort(_rows_per_value(shown["user_id"]))[::-1]
    of_video = np.sort(_rows_per_value(shown["video_id"]))[::-1]
    figures = {
        "click_rate": clicks.num_rows / max(shown.num_rows, 1),
        "completed_share_of_watches": float(np.mean(watched["completed"].to_numpy()))
        if watched.num_rows
        else 0.0,
        "repeated_impression_share": _repeated_share(shown),
        "repeated_click_share": _repeated_share(clicks),
        "impressions_per_user_mean": float(of_user.mean()) if len(of_user) else 0.0,
        "share_of_top_1_percent_users": _share_of_top(of_user, 0.01),
        "share_of_top_1_percent_videos": _share_of_top(of_video, 0.01),
        "share_of_top_10_percent_videos": _share_of_top(of_video, 0.1),
    }
    duration_s = _duration_s(shown, tables["videos"])
    watch_time_s = clicks["watch_time_s"].to_numpy()
    of_clicks = duration_s[shown["clicked"].to_numpy()]
    known = of_clicks > 0
    for name, values in (
        ("impressions_per_user", of_user),
        ("impressions_per_video", of_video),
        ("duration_s_of_impressions", duration_s[duration_s > 0]),
        ("watch_time_s_of_clicks", watch_time_s),
        ("watched_share_of_clicks", watch_time_s[known] / of_clicks[known]),
    ):
        for percent in PERCENTILES:
            figures[f"{name}_p{percent}"] = float(np.percentile(values, percent)) if len(values) else 0.0
    return figures


def plot_marginals(
    tables: Mapping[str, pa.Table], examination: Mapping[str, np.ndarray], directory: Path
) -> None:
    """Pictures of the logs: activity and popularity, watch time, position and freshness.

    Args:
        tables: as for `marginals`.
        examination: surface -> float [page_size], the true effect of a position.
        directory: existing; PNG files are written to it.
    """
    from matplotlib.figure import Figure

    shown = tables["impressions"]
    if not shown.num_rows:
        say("nobody came: there is nothing to draw")
        return
    clicked = shown["clicked"].to_numpy()

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("user_id", "video_id"):
        counts = np.sort(_rows_per_value(shown[name]))[::-1]
        left.plot(counts, np.arange(1, len(counts) + 1) / max(len(counts), 1), label=f"per {name[:-3]}")
    left.set(xscale="log", yscale="log", xlabel="impressions, at least", ylabel="share", title="Tails")
    left.legend()
    day = (shown["shown_at"].cast(pa.int64()).to_numpy() // 86_400_000_000).astype(np.int64)
    counts = np.bincount(day - day.min())
    right.bar(np.arange(len(counts)), counts)
    right.set(xlabel="day of the logs", ylabel="impressions", title="Volume")
    figure.savefig(directory / "activity.png", dpi=110)

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    watch_time_s = np.maximum(shown["watch_time_s"].to_numpy()[clicked], 0.1)
    left.hist(np.log10(watch_time_s), bins=80)
    left.set(xlabel="log10 of watch time after a click, s", ylabel="clicks", title="Watch time")
    duration_s = _duration_s(shown, tables["videos"])[clicked]
    right.hist(np.clip(shown["watch_time_s"].to_numpy()[clicked] / duration_s, 0, 2.1), bins=80)
    right.set(xlabel="share of the video that was watched", ylabel="clicks", title="How far")
    figure.savefig(directory / "watch_time.png", dpi=110)

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    position = shown["position"].to_numpy()
    for surface, looked in examination.items():
        here = pc.equal(shown["surface"], surface).to_numpy()
        totals = np.maximum(np.bincount(position[here], minlength=len(looked)), 1)
        rate = np.bincount(position[here], weights=clicked[here], minlength=len(looked)) / totals
        (line,) = left.plot(rate, marker="o", label=f"{surface}: click rate of the logs")
        left.plot(rate[0] * looked / looked[0], ":", color=line.get_color(), label="true effect alone")
    left.set(xlabel="position", ylabel="click rate", title="Position")
    left.legend(fontsize="small")
    age_days = _age_days(shown, tables["videos"])
    edges = np.geomspace(0.05, 200, 25)
    place = np.digitize(age_days, edges)
    totals = np.bincount(place, minlength=len(edges) + 1)
    rate = np.bincount(place, weights=clicked, minlength=len(edges) + 1) / np.maximum(totals, 1)
    known = totals[1:-1] >= 50
    right.plot(np.sqrt(edges[1:] * edges[:-1])[known], rate[1:-1][known], marker="o")
    right.set(xscale="log", xlabel="days since upload", ylabel="click rate", title="Freshness")
    figure.savefig(directory / "position_and_freshness.png", dpi=110)


def _rows_per_value(column: pa.ChunkedArray) -> np.ndarray:
    return pc.value_counts(column).field("counts").to_numpy()


def _repeated_share(table: pa.Table) -> float:
    """Share of rows whose user had a row with the same video before."""
    pairs = table.select(["user_id", "video_id"]).group_by(["user_id", "video_id"]).aggregate([]).num_rows
    return 1.0 - pairs / table.num_rows if table.num_rows else 0.0


def _share_of_top(counts: np.ndarray, share: float) -> float:
    top = max(int(len(counts) * share), 1)
    return float(counts[:top].sum() / counts.sum()) if len(counts) else 0.0


def _place_of(shown: pa.Table, videos: pa.Table) -> np.ndarray:
    return pc.index_in(shown["video_id"], value_set=videos["video_id"].combine_chunks()).to_numpy()


def _duration_s(shown: pa.Table, videos: pa.Table) -> np.ndarray:
    """float64 [num_impressions]; NaN where it is not known."""
    duration_s = pc.fill_null(videos["duration_s"], np.nan).to_numpy()
    return duration_s[_place_of(shown, videos)]


def _age_days(shown: pa.Table, videos: pa.Table) -> np.ndarray:
    uploaded = videos["uploaded_at"].cast(pa.int64()).to_numpy()[_place_of(shown, videos)]
    return (shown["shown_at"].cast(pa.int64()).to_numpy() - uploaded) / 86_400e6


def main(directories: Sequence[str]) -> int:
    """Print the figures of the logs in `directories`, as `ingest` leaves them, side by side."""
    if not directories:
        say("usage: python -m watchnext.data.simulation_report DIRECTORY ... (of ingested logs)")
        return 2
    columns = []
    for directory in directories:
        tables = {}
        for name, needed in NEEDED.items():
            dataset = pq.ParquetDataset(sorted((Path(directory) / name).glob("part-*.parquet")))
            tables[name] = dataset.read([column for column in needed if column in dataset.schema.names])
        columns.append(marginals(tables))
    rows = [(name, *(f"{figures[name]:.4g}" for figures in columns)) for name in columns[0]]
    print_table("Marginals", ("figure", *directories), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
