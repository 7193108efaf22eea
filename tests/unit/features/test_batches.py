"""Encoding: what index each id gets, how bags are padded, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.errors import InputError
from watchnext.features.batches import Encoder, FeatureSpec, Vocabulary, pad, read_examples, stable_hash


def vocabulary(*tokens: int | str) -> Vocabulary:
    return Vocabulary("video", pa.array(tokens), np.arange(len(tokens), 0, -1))


@pytest.mark.parametrize("spread", [1, 10**12], ids=["dense", "sparse"])
def test_integers_are_looked_up_by_value(spread: int) -> None:
    known = vocabulary(7 * spread, 3 * spread, -5 * spread)
    values = pa.array([3 * spread, -5 * spread, 4 * spread, None, 7 * spread, 10**15, -(10**15)])
    np.testing.assert_array_equal(known.lookup(values), np.array([2, 3, 0, 0, 1, 0, 0], dtype=np.int32))
    assert known.lookup(values).dtype == np.int32


def test_unknown_zero_is_unknown_even_where_null_is_filled_with_zero() -> None:
    np.testing.assert_array_equal(vocabulary(0, 1).lookup(pa.array([None, 0, 1])), [0, 1, 2])


@pytest.mark.parametrize("rows", [5, 10_000], ids=["request", "batch"])
def test_strings_are_looked_up_by_value(rows: int) -> None:
    values = pa.array((["b", None, "ü", "zz", "a"] * rows)[:rows])
    expected = ([2, 0, 3, 0, 1] * rows)[:rows]
    np.testing.assert_array_equal(vocabulary("a", "b", "ü").lookup(values), expected)


def test_strings_among_integers_are_refused() -> None:
    with pytest.raises(InputError, match="ids of type string are looked up in a vocabulary of type int64"):
        vocabulary(1, 2).lookup(pa.array(["1"]))


def test_chunks_and_slices_make_no_difference() -> None:
    bags = pa.chunked_array([[[1], [2, 3]], [None, [], [3, 2, 1, 9]]], pa.list_(pa.int64()))
    known = vocabulary(1, 2, 3)
    expected = [[1, 0, 0], [2, 3, 0], [0, 0, 0], [0, 0, 0], [2, 1, 0]]
    np.testing.assert_array_equal(pad(bags, known, 3), expected)
    np.testing.assert_array_equal(pad(bags.slice(1), known, 3), expected[1:])
    np.testing.assert_array_equal(pad(bags.combine_chunks(), known, 3), expected)


def test_a_bag_longer_than_its_row_keeps_the_last() -> None:
    np.testing.assert_array_equal(pad(pa.array([[1, 2, 3]]), vocabulary(1, 2, 3), 2), [[2, 3]])


@pytest.fixture
def features_dir(tmp_path: Path) -> Path:
    specs = {
        "retrieval": [
            FeatureSpec("history", "multivalent", "video", 3),
            FeatureSpec("example_age_s", "continuous"),
        ],
        "ranking": [
            FeatureSpec("video_id", "categorical", "video", side="impression"),
            FeatureSpec("x", "continuous"),
        ],
    }
    manifest = {f"{name}_features": [vars(spec) for spec in of] for name, of in specs.items()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "quantiles.json").write_text(json.dumps({"x": [0.0, 1.0]}))
    folder = tmp_path / "vocabularies" / "video"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"token": [9, 8], "index": pa.array([1, 2], pa.int32()), "frequency": [5, 4]}),
        folder / "part-00000.parquet",
    )
    return tmp_path


def test_encoder_makes_the_inputs_of_both_models(features_dir: Path) -> None:
    encoder = Encoder.load(features_dir)
    assert encoder.sizes == {"video": 2}
    table = pa.table(
        {"video_id": [8, 7], "history": [[9, 8], []], "example_age_s": [1.5, 0.0], "other": [1, 2]}
    )
    arrays = encoder.encode_retrieval(table)
    assert list(arrays) == ["history", "example_age_s", "label"]
    np.testing.assert_array_equal(arrays["history"], [[1, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(arrays["label"], [2, 0])
    assert arrays["example_age_s"].dtype == np.float32
    ranking = encoder.encode_ranking(
        pa.table(
            {"video_id": [9, None], "x": [2.5, None], "clicked": [True, False], "watch_time_s": [3.0, 0.0]}
        )
    )
    np.testing.assert_array_equal(ranking["x"], np.array([2.5, np.nan], dtype=np.float32))
    np.testing.assert_array_equal(ranking["clicked"], np.array([1.0, 0.0], dtype=np.float32))


def test_what_is_known_in_training_alone_tells_nothing_where_it_is_absent(features_dir: Path) -> None:
    """Kind by kind: the value of the unknown, one row for each of the request's videos."""
    path = features_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    known_later = [
        FeatureSpec("place", "categorical", "video", None, "impression", training_only=True),
        FeatureSpec("bag", "multivalent", "video", 2, "impression", training_only=True),
        FeatureSpec("depth", "continuous", None, None, "impression", training_only=True),
    ]
    path.write_text(
        json.dumps(manifest | {"ranking_features": [*manifest["ranking_features"], *map(vars, known_later)]})
    )
    encoder = Encoder.load(features_dir)
    columns = {"video_id": pa.array([9, 8, 7]), "x": pa.array([2.5])}
    served = encoder.encode_ranking(columns)
    np.testing.assert_array_equal(served["place"], np.zeros(3, np.int32))
    np.testing.assert_array_equal(served["bag"], np.zeros((3, 2), np.int32))
    np.testing.assert_array_equal(served["depth"], np.full(3, np.nan, np.float32))
    told = {
        "place": pa.array([8, 9, None]),
        "bag": pa.array([[9], [], None]),
        "depth": pa.array([1.0, None, 3.0]),
    }
    trained = encoder.encode_ranking(columns | told)
    np.testing.assert_array_equal(trained["place"], [2, 1, 0])
    np.testing.assert_array_equal(trained["bag"], [[1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(trained["depth"], np.array([1.0, np.nan, 3.0], np.float32))
    assert {name: array.dtype for name, array in served.items()} == {
        name: array.dtype for name, array in trained.items()
    }


def test_a_manifest_from_before_there_were_inputs_of_training_alone_is_read(features_dir: Path) -> None:
    path = features_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    for spec in manifest["ranking_features"]:
        del spec["training_only"]
    path.write_text(json.dumps(manifest))
    assert [spec.training_only for spec in Encoder.load(features_dir).ranking_features] == [False, False]


def test_numbers_in_the_unit_interval_and_users_are_encoded() -> None:
    """Gender by its place in the vocabulary, what is unknown as NaN, a number outside as the nearest bound."""
    specs = [FeatureSpec("gender", "unit", "gender"), FeatureSpec("age", "unit")]
    manifest = {"retrieval_features": [vars(spec) for spec in specs], "ranking_features": []}
    genders = Vocabulary("gender", pa.array(["f", "m", "x"]), np.array([5, 4, 1]))
    table = pa.table(
        {
            "gender": ["m", None, "?", "f", "x"],
            "age": [0.5, None, 1.5, -0.5, 0.0],
            "user_id": ["a", "b", "a", "ü", "b"],
        }
    )
    arrays = Encoder(manifest, {"gender": genders}, {}).encode_retrieval(table)
    np.testing.assert_array_equal(arrays["gender"], np.float32([0.5, np.nan, np.nan, 0.0, 1.0]))
    np.testing.assert_array_equal(arrays["age"], np.float32([0.5, np.nan, 1.0, 0.0, 0.0]))
    assert arrays["gender"].dtype == arrays["age"].dtype == np.float32
    user = arrays["user"]
    assert user.dtype == np.int64
    assert (user[0], user[1]) == (user[2], user[4])
    assert len({user[0], user[1], user[3]}) == 3
    one = Encoder(manifest, {"gender": Vocabulary("gender", pa.array(["f"]), np.array([1]))}, {})
    np.testing.assert_array_equal(
        one.encode_retrieval(table)["gender"], np.float32([np.nan, np.nan, np.nan, 0.0, np.nan])
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_users_are_numbered_alike_wherever_they_stand(chunked: bool) -> None:
    """Integers as they are; strings by a hash that neither the order nor the rest of the column moves."""
    integers = pa.array([7, -1, 7])
    np.testing.assert_array_equal(stable_hash(integers), [7, -1, 7])
    strings = pa.chunked_array([["x"], ["y", "x"]]) if chunked else pa.array(["x", "y", "x"])
    np.testing.assert_array_equal(stable_hash(strings)[[0, 1]], stable_hash(pa.array(["y", "x"]))[[1, 0]])
    # md5("x") begins with 9d d4 e4 61 26 8c 80 34, least significant byte first.
    assert stable_hash(pa.array(["x"]))[0] == 0x34808C2661E4D49D


def test_the_query_side_of_a_request_stays_one_row_for_all_its_videos(features_dir: Path) -> None:
    arrays = Encoder.load(features_dir).encode_ranking(
        {"video_id": pa.array([9, 8, 1]), "x": pa.array([0.5])}
    )
    np.testing.assert_array_equal(arrays["x"], [0.5])
    np.testing.assert_array_equal(arrays["video_id"], [1, 2, 0])


def test_a_missing_input_is_named(features_dir: Path) -> None:
    with pytest.raises(InputError, match="first offenders: x"):
        Encoder.load(features_dir).encode_ranking(pa.table({"video_id": [9]}))


def test_a_vocabulary_with_a_gap_is_refused(features_dir: Path) -> None:
    path = features_dir / "vocabularies" / "video" / "part-00000.parquet"
    pq.write_table(pa.table({"token": [9, 8], "index": [1, 3], "frequency": [5, 4]}), path)
    with pytest.raises(InputError, match="do not run from 1 without a gap"):
        Encoder.load(features_dir)


def test_no_features_at_all_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are no features here[\s\S]*manifest.json"):
        Encoder.load(tmp_path)


def test_examples_are_read_by_row_group_in_stored_order(tmp_path: Path) -> None:
    for part in (0, 1):
        table = pa.table({"x": range(part * 10, part * 10 + 10), "y": range(10)})
        pq.write_table(table, tmp_path / f"part-{part:05d}.parquet", row_group_size=4)
    tables = list(read_examples(tmp_path, columns=["x"]))
    assert [table.num_rows for table in tables] == [4, 4, 2, 4, 4, 2]
    assert pa.concat_tables(tables).to_pydict() == {"x": list(range(20))}


def test_a_split_without_examples_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are no examples here[\s\S]*shadow"):
        next(read_examples(tmp_path / "shadow"))
