"""Make the features of generated logs, and print one JSON object last."""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import CannotMeasure
from benchmarks.features.measures import in_process, prepare
from watchnext.console import say


def run(rows: int, large_rows: int, folder: Path) -> dict[str, Any]:
    """Both at `rows` impressions, ours at `large_rows` too unless that is 0."""
    result: dict[str, Any] = {"rows": rows, "large_rows": large_rows}
    small = folder / "small"
    small.mkdir()
    say(f"drawing logs of {rows} impressions")
    prepare(rows, small)
    ours, by_hand = in_process("ours", small), in_process("plain", small)
    shutil.rmtree(small)
    result |= {
        "rows_per_s_10m": rows / ours["seconds"],
        "plain_rows_per_s": rows / by_hand["seconds"],
        "ratio_to_plain_duckdb": by_hand["seconds"] / ours["seconds"],
        # On a busy machine seconds say little, and the processor's own seconds more.
        "rows_per_cpu_s_10m": rows / ours["cpu_s"],
        "ratio_to_plain_duckdb_in_cpu_s": by_hand["cpu_s"] / ours["cpu_s"],
        "peak_rss_gb_10m": ours["peak_rss_gb"],
        "rows_per_s_100m": None,
        "peak_rss_gb_100m": None,
    }
    if large_rows:
        large = folder / "large"
        large.mkdir()
        say(f"drawing logs of {large_rows} impressions")
        prepare(large_rows, large)
        at_large = in_process("ours", large)
        result |= {
            "rows_per_s_100m": large_rows / at_large["seconds"],
            "peak_rss_gb_100m": at_large["peak_rss_gb"],
            # 1: time per row does not depend on the number of rows.
            **{
                f"{name}_per_row_large_over_small": at_large[unit] / large_rows / (ours[unit] / rows)
                for name, unit in (("time", "seconds"), ("cpu", "cpu_s"))
            },
        }
    return result


def main() -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="impressions that both are measured on")
    parser.add_argument(
        "--large-rows",
        type=int,
        default=100_000_000,
        help="impressions that ours is measured on too; 0: none",
    )
    parser.add_argument("--work", type=Path, help="where logs and features go; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-features-", dir=arguments.work) as folder:
        try:
            result = run(arguments.rows, arguments.large_rows, Path(folder))
        except CannotMeasure as problem:
            say(f"bench-features: {problem}")
            return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
