"""Training reads shards: the same examples in another order, of which a shard at a time is in memory."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.features.batches import WHOLE, Share, read_examples, read_ranges, shared_ranges
from watchnext.models import training
from watchnext.models.shards import Shards, write_shards

PROGRAM = Path(__file__).with_name("training_of_shards.py")


def many(features: Path, root: Path, rows: int) -> Path:
    """The features with their training examples over and over, `rows` of them."""
    shutil.copytree(features, root)
    folder = root / "retrieval_examples" / "training"
    few = pa.concat_tables(read_examples(folder))
    shutil.rmtree(folder)
    folder.mkdir()
    group = pa.concat_tables([few] * (10_000 // few.num_rows + 1)).slice(0, 10_000).combine_chunks()
    with pq.ParquetWriter(folder / "part-0.parquet", group.schema) as file:
        for _ in range(rows // group.num_rows):
            file.write_table(group)
    return root


@pytest.mark.slow
def test_ten_times_the_examples_take_no_more_memory(world_features, tmp_path):
    """Peak memory of the stage; in memory, the same examples take what they take, or this could not fail."""

    def peak_mb(rows: int, at_once: int) -> float:
        folder = tmp_path / f"{rows}-{at_once}"
        features = many(world_features, folder / "features", rows)
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(features), str(folder / "out"), str(at_once)],
            check=False,
            capture_output=True,
            text=True,
            # Memory that was given back is to be given back.
            env={**os.environ, "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "0"},
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["examples"] == rows
        assert [path.name for path in (folder / "out").iterdir() if "shards" in path.name] == []
        return told["peak_mb"]

    few, times_ten = peak_mb(20_000, 10_000), peak_mb(200_000, 10_000)
    in_memory = peak_mb(200_000, 1_000_000)
    assert times_ten < few + 60
    assert in_memory > few + 150


ARRAYS = {
    "x": np.arange(1_000, dtype=np.int32),
    "bag": np.arange(3_000, dtype=np.float32).reshape(1_000, 3),
}


def in_shards(folder: Path, num_shards: int = 4, seed: int = 1) -> Shards:
    folder.mkdir(exist_ok=True)
    parts = (
        {name: array[begin : begin + 130] for name, array in ARRAYS.items()} for begin in range(0, 1_000, 130)
    )
    return write_shards(parts, folder, num_shards=num_shards, seed=seed)


def digest_of(shards: Shards) -> str:
    found = hashlib.sha256()
    shards.update_digest(found)
    return found.hexdigest()


def test_shards_hold_every_example_once_and_each_a_sample_of_them(tmp_path):
    shards = in_shards(tmp_path / "shards")
    parts = list(shards.parts())
    assert sorted(np.concatenate([part["x"] for part in parts])) == list(range(1_000))
    for part in parts:
        np.testing.assert_array_equal(part["bag"], ARRAYS["bag"][part["x"]])
        assert 200 < len(part["x"]) < 300
        assert 400 < part["x"].mean() < 600, "examples are stored in the order of their days"
    shards.remove()
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("num_shards", [1, 4])
def test_some_of_the_examples_are_those_that_are_wanted(num_shards, tmp_path):
    """In memory or not; a shard of which none is wanted is none, and what is wanted is part of the digest."""
    shards = in_shards(tmp_path / "shards", num_shards) if num_shards > 1 else Shards.of(ARRAYS)

    def below(limit):
        return shards.where(lambda part: part["x"] < limit)

    some = below(300)
    parts = list(some.parts())
    assert some.num_rows == sum(len(part["x"]) for part in parts) == 300
    assert sorted(np.concatenate([part["x"] for part in parts])) == list(range(300))
    for part in parts:
        assert np.array_equal(part["bag"][:, 0], 3.0 * part["x"])
    assert below(0).num_rows == 0
    assert list(below(0).parts()) == []
    first = int(min(part["x"].min() for part in shards.parts()))
    assert len(below(first + 1).rows) == 1
    assert digest_of(below(300)) == digest_of(some) != digest_of(below(299))


def test_the_digest_of_shards_is_that_of_what_they_hold(tmp_path):
    first = digest_of(in_shards(tmp_path / "a"))
    assert digest_of(in_shards(tmp_path / "b")) == first
    changed = in_shards(tmp_path / "c")
    file = next((tmp_path / "c").glob("bag-*"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\x80?")
    assert digest_of(changed) != first


def test_a_pass_over_shards_has_every_example_at_most_once_and_passes_differ(tmp_path):
    shards = in_shards(tmp_path / "shards")
    steps = training.num_steps(shards, 32)
    assert steps == sum(rows // 32 for rows in shards.rows)
    batches = [
        {name: tensor.numpy() for name, tensor in batch.items()}
        for batch in training.sharded_batches(shards, batch_size=32, epochs=2, seed=5, steps=steps)
    ]
    assert len(batches) == 2 * steps
    passes = [[batch["x"] for batch in part] for part in (batches[:steps], batches[steps:])]
    for one in passes:
        seen = np.concatenate(one)
        assert len(set(seen.tolist())) == len(seen) == 32 * steps
    assert not np.array_equal(passes[0][0], passes[1][0])
    for batch in batches:
        np.testing.assert_array_equal(batch["bag"], ARRAYS["bag"][batch["x"]])


@pytest.mark.parametrize(("epoch", "step"), [(0, 3), (0, 17), (1, 9)])
def test_what_goes_on_in_the_middle_of_a_pass_sees_the_batches_that_are_left(epoch, step, tmp_path):
    shards = in_shards(tmp_path / "shards")
    steps = training.num_steps(shards, 32)

    def batches(**begin: int) -> list[list[int]]:
        found = training.sharded_batches(shards, batch_size=32, epochs=2, seed=5, steps=steps, **begin)
        return [batch["x"].numpy().tolist() for batch in found]

    assert batches(first_epoch=epoch, first_step=step) == batches()[epoch * steps + step :]
    shard, rows = training._rows_of(shards, 32, 5, epoch, step)
    assert shards.load(shard)["x"][rows].tolist() == batches()[epoch * steps + step]


def test_fewer_steps_are_the_first_ones_of_each_pass(tmp_path):
    shards = in_shards(tmp_path / "shards")
    steps = training.num_steps(shards, 32)
    both = [
        [
            batch["x"].numpy().tolist()
            for batch in training.sharded_batches(shards, batch_size=32, epochs=2, seed=5, steps=number)
        ]
        for number in (steps, steps - 4)
    ]
    assert both[1] == both[0][: steps - 4] + both[0][steps : 2 * steps - 4]


@pytest.mark.parametrize("groups", [[1_000], [10, 700, 1], [50] * 60, [7] * 3])
@pytest.mark.parametrize("of", [1, 2, 3])
def test_workers_share_the_row_groups_without_a_rest(groups, of, tmp_path):
    """Each row is read by one worker, each reads about as many, and of many row groups only its own."""
    total = sum(groups)
    table = pa.table({"x": pa.array(range(total))})
    with pq.ParquetWriter(tmp_path / "part-0.parquet", table.schema) as file:
        begin = 0
        for rows in groups:
            file.write_table(table.slice(begin, rows), row_group_size=rows)
            begin += rows
    read = [
        [value for part in read_examples(tmp_path, share=Share(index, of)) for value in part["x"].to_pylist()]
        for index in range(of)
    ]
    assert sorted(value for rows in read for value in rows) == list(range(total))
    if total > 500:
        assert max(map(len, read)) - min(map(len, read)) <= 0.1 * total
    for index, rows in enumerate(read):
        ranges = shared_ranges(tmp_path, Share(index, of))
        assert [value for begin, end in ranges for value in range(begin, end)] == rows
        again = [value for part in read_ranges(tmp_path, ranges) for value in part["x"].to_pylist()]
        assert again == rows


def test_of_many_row_groups_a_worker_takes_whole_ones():
    assert Share(1, 2).pieces([5] * 40) == [[], [(0, 5)]] * 20
    assert WHOLE.pieces([5, 3]) == [[(0, 5)], [(0, 3)]]
