"""What of an engine's failures is explained, and what is left to its own words. `tests/scale/` has Spark's real ones."""

import shutil
from pathlib import Path

import ibis
import pytest

from watchnext.engine import EngineParams, connect
from watchnext.engine_failures import full_disk_explained, spark_explained
from watchnext.errors import InputError

MASTER = "spark://127.0.0.1:7077"
EXPLAINED = {
    "Task 3 failed\njava.io.IOException: No space left on device\n\tat java.io": "a disk is full[\\s\\S]*--scratch",
    "Application has been killed. Reason: All masters are unresponsive! Giving up.": "master gave up",
    "java.lang.OutOfMemoryError: Java heap space": "out of memory[\\s\\S]*spark.executor.memory",
}


@pytest.mark.parametrize("said", EXPLAINED)
def test_what_a_person_can_mend_is_explained_with_the_line_that_says_it(said: str) -> None:
    """Seen to fail with the pattern of a full disk emptied: a full disk was then an unexplained failure."""
    with pytest.raises(InputError, match=EXPLAINED[said]) as told, spark_explained(MASTER):
        raise RuntimeError(said)
    assert MASTER in str(told.value)
    assert isinstance(told.value.__cause__, RuntimeError)
    assert "\tat java.io" not in str(told.value)


def test_another_version_names_that_of_this_process() -> None:
    pyspark = pytest.importorskip("pyspark")
    with pytest.raises(InputError, match=f"which has {pyspark.__version__}"), spark_explained(MASTER):
        raise RuntimeError("java.io.InvalidClassException: org.apache.spark.rdd; local class incompatible")


def test_what_was_refused_already_and_what_is_a_defect_are_left_alone() -> None:
    with pytest.raises(InputError, match=r"^no table here"), spark_explained(MASTER):
        raise InputError("no table here: No space left on device")
    with pytest.raises(ZeroDivisionError), spark_explained(MASTER):
        raise ZeroDivisionError("division by zero")


def many_rows(rows: int) -> ibis.Table:
    """Rows that have to be sorted, as wide as their number."""
    numbers = ibis.range(rows).unnest().name("x").as_table()
    return numbers.mutate(y=numbers.x.hash().cast("string"))


def test_a_disk_without_room_for_what_duckdb_writes_is_named(tmp_path: Path) -> None:
    """The system's own full disk. Seen to fail where DuckDB's words are let through."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full: a full disk is NOT tested here")
    (tmp_path / "part-00000.parquet").symlink_to("/dev/full")
    with (
        pytest.raises(InputError, match=r"a disk is full[\s\S]*No space left on device"),
        connect(EngineParams()) as engine,
    ):
        engine.write(many_rows(1_000), tmp_path, sort_by=["x"], part=0)


@pytest.mark.parametrize(("room", "said"), [("1MB", "a disk is full"), ("", "ran out of memory")])
def test_no_room_to_spill_and_no_memory_are_told_apart(room: str, said: str, tmp_path: Path) -> None:
    """DuckDB calls both a lack of memory: of a full disk it knows that as much as there was room for is used."""
    setting = f"SET max_temp_directory_size = '{room}'" if room else "SET temp_directory = ''"

    def sort() -> None:
        with connect(EngineParams(memory_limit_gb=0.03), tmp_path) as engine:
            engine.backend.raw_sql(setting)
            engine.write(many_rows(2_000_000), tmp_path / "out", sort_by=["y"])

    with pytest.raises(InputError, match=said):
        sort()


def test_any_other_full_disk_of_a_stage_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some")
    with (
        pytest.raises(InputError, match=r"^a disk is full[\s\S]*outputs of the last good run stand"),
        full_disk_explained(),
    ):
        shutil.copyfile(tmp_path / "file", "/dev/full")
    with pytest.raises(FileNotFoundError), full_disk_explained():
        (tmp_path / "nothing").read_bytes()
