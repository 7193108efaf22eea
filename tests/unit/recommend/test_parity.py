"""The features that serving makes of a user's state, beside those that the pipeline stored, on replayed requests."""

import datetime as dt
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))

from random_logs import make_rows, write_rows

from watchnext.engine import EngineParams
from watchnext.errors import InputError
from watchnext.features.ranking_features import Feature, features_named
from watchnext.recommend.parity import compare_features
from watchnext.stages.featurize import Params, featurize

GATE = dt.date(2026, 3, 6)
SPLITS = {"tuning": dt.date(2026, 3, 5), "gate": GATE, "shadow": dt.date(2026, 3, 7)}
EVERYTHING = 10_000


@pytest.fixture(scope="module", params=[False, True], ids=["integer ids", "string ids"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of seven days with 700 requests a day, and what featurize makes of them."""
    directory = tmp_path_factory.mktemp("parity")
    rows = make_rows(17, users=80, videos=60, days=7, events_per_day=2800, strings=request.param)
    tables = write_rows(rows, directory / "tables")
    featurize(Params(), EngineParams(), 7, tables, directory / "features", directory / "report")
    return directory


def declared(project: Path) -> tuple[Feature, ...]:
    manifest = json.loads((project / "features" / "manifest.json").read_text())
    return features_named(manifest["inputs"]["ranking"])


def test_serving_makes_the_features_of_thousands_of_requests(project: Path) -> None:
    """Every declared feature of every impression of three days: ids, strings and counts exactly, others to 1e-6."""
    features = declared(project)
    assert {"user_column_plan", "seed_video_id", "watches_of_topic"} <= {one.name for one in features}
    requests = 0
    for split, day in SPLITS.items():
        found = compare_features(
            project / "tables", project / "features", split, day, features, most_requests=EVERYTHING
        )
        assert found.offenders() == []
        examples = pq.read_table(project / "features" / "ranking_examples" / split)
        assert found.values == examples.num_rows * (len(features) - 1), "all but the position"
        requests += found.requests
    assert requests == 3 * 700


def test_a_sample_is_spread_over_the_day(project: Path) -> None:
    found = compare_features(project / "tables", project / "features", "gate", GATE, declared(project), 50)
    assert found.requests == 50
    assert found.mismatches == ()


def changed(project: Path, copy: Path, column: str, values: pa.Array) -> Path:
    """The gate day's examples with another column, beside the other features as they are."""
    for entry in (project / "features").iterdir():
        if entry.name != "ranking_examples":
            (copy / entry.name).symlink_to(entry)
    table = pq.read_table(project / "features" / "ranking_examples" / "gate")
    table = table.set_column(table.column_names.index(column), column, values)
    (copy / "ranking_examples" / "gate").mkdir(parents=True)
    pq.write_table(table, copy / "ranking_examples" / "gate" / "part-00000.parquet")
    return copy


def test_what_differs_is_named_with_its_first_offender(project: Path, tmp_path: Path) -> None:
    """A count that is one too high in three rows is found, however large; a fraction beyond 1e-6 too."""
    table = pq.read_table(project / "features" / "ranking_examples" / "gate")
    counts = table["user_impressions"].to_pylist()
    wrong = [value + (place in (5, 6, 900)) for place, value in enumerate(counts)]
    features = features_named(["user_impressions", "user_click_rate"])
    copy = changed(project, tmp_path, "user_impressions", pa.array(wrong))
    found = compare_features(project / "tables", copy, "gate", GATE, features, EVERYTHING)
    [(name, number, first)] = found.offenders()
    assert (name, number) == ("user_impressions", 3)
    assert (first.stored, first.served) == (wrong[5], counts[5])
    assert (first.request_id, first.video_id) == tuple(
        table[key][5].as_py() for key in ("request_id", "video_id")
    )


@pytest.mark.parametrize(("relative", "differs"), [(5e-7, False), (2e-6, True)])
def test_fractions_may_differ_by_a_millionth(
    project: Path, tmp_path: Path, relative: float, differs: bool
) -> None:
    rates = pq.read_table(project / "features" / "ranking_examples" / "gate")["user_mean_watch_time_s"]
    moved = [None if rate is None else rate * (1 + relative) for rate in rates.to_pylist()]
    copy = changed(project, tmp_path, "user_mean_watch_time_s", pa.array(moved, pa.float64()))
    features = features_named(["user_mean_watch_time_s"])
    found = compare_features(project / "tables", copy, "gate", GATE, features, EVERYTHING)
    assert bool(found.mismatches) == differs


def test_examples_of_other_logs_are_refused(project: Path, tmp_path: Path) -> None:
    rows = make_rows(3, users=80, videos=60, days=3)
    for row in rows["impressions"]:
        row["request_id"] += 1_000_000
    other = write_rows(rows, tmp_path)
    with pytest.raises(InputError, match="impressions that the logs do not have"):
        compare_features(other, project / "features", "gate", GATE, declared(project), 50)
