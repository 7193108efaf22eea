import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.errors import InputError
from watchnext.models.candidate_sources import MostPopular

DAY = datetime.date(2026, 1, 9)


@pytest.fixture
def statistics(tmp_path):
    rows = [
        ("a", DAY, 10, 5),
        ("b", DAY, 99, 7),
        ("c", DAY, 20, 5),
        ("d", DAY, 10, 5),
        ("e", DAY, 0, 0),
        ("f", DAY - datetime.timedelta(days=1), 500, 500),
    ]
    names = ("video_id", "day", "impressions", "completed_watches")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "part-00000.parquet")
    return tmp_path


def test_order_is_completed_watches_then_impressions_then_id_of_that_day_alone(statistics):
    popular = MostPopular.from_statistics(statistics, DAY)
    assert popular.video_ids.to_pylist() == ["b", "c", "a", "d"]
    assert popular.recommend(2).to_pylist() == ["b", "c"]
    assert len(popular.recommend(100)) == 4


def test_places_count_from_1_and_unknown_is_0(statistics):
    popular = MostPopular.from_statistics(statistics, DAY)
    assert popular.places(pa.array(["d", "b", "e", "zzz", None])).tolist() == [4, 1, 0, 0, 0]


def test_a_day_without_statistics_is_an_error(statistics):
    with pytest.raises(InputError, match="no video has an event"):
        MostPopular.from_statistics(statistics, DAY + datetime.timedelta(days=30))
    with pytest.raises(InputError, match="no video statistics"):
        MostPopular.from_statistics(statistics / "nowhere", DAY)
