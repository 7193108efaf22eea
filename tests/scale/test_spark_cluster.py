"""Tables on a Spark cluster: the same rows as on DuckDB, though a worker is killed meanwhile, and what is refused.

A real master and two real workers on loopback. Every stage runs in a process of its own (`on_cluster`), as it does under
DVC: a process keeps the Java that its first session started.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world

from watchnext import cluster
from watchnext.engine import CLUSTER_DIR, EngineParams, connect
from watchnext.errors import InputError

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
LONG_S = 1_000.0

STARTED: list[subprocess.Popen[str]] = []
"""Stages; Java, which each of them runs, ends with it."""


def write_logs(directory: Path) -> None:
    """The tiny world as a source's own files, with a few rows that validation sets aside."""
    tables = directory.with_name("tables")
    tiny_world.write_tables(tables)
    directory.mkdir()
    for name in ("videos", "users", "watches", "impressions"):
        table = pq.read_table(tables / name)
        if name == "impressions":
            times = table["watch_time_s"].to_pylist()
            times[7] = times[900] = -3.0
            table = table.set_column(
                table.column_names.index("watch_time_s"), "watch_time_s", pa.array(times)
            )
            table = pa.concat_tables([table, table.slice(40, 3)])
        if name == "watches":
            users = table["user_id"].to_pylist()
            users[11] = 4711
            table = table.set_column(0, "user_id", pa.array(users))
        pq.write_table(table, directory / f"{name}.parquet")


def watchnext(folder: Path, *arguments: str) -> None:
    """The command, as a user types it in `folder`."""
    subprocess.run(
        [sys.executable, "-m", "watchnext.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with logs and a running cluster."""
    pytest.importorskip("pyspark", reason="pyspark is not installed: the Spark cluster is NOT tested here")
    if shutil.which("java") is None:
        pytest.skip("there is no Java: the Spark cluster is NOT tested here")
    directory = tmp_path_factory.mktemp("spark")
    write_logs(directory / "logs")
    watchnext(directory, "cluster", "up", "--port", str(cluster._free_port()), "--memory-gb", "1.0")
    try:
        yield directory
    finally:
        for process in STARTED:  # those that a test gave up on
            process.kill()
            process.wait()
        left = [one.process() for one in find(directory).daemons]
        watchnext(directory, "cluster", "down")
        assert not any(process and process.is_running() for process in left)
        assert not (directory / CLUSTER_DIR).exists()


def find(work: Path) -> cluster.Cluster:
    found = cluster.find(work / CLUSTER_DIR)
    assert found is not None
    return found


def engine_of(work: Path, **spark_conf: Any) -> EngineParams:
    return EngineParams(
        kind="spark",
        master=find(work).master,
        memory_limit_gb=1.0,
        spark_conf={
            "spark.sql.shuffle.partitions": 4,
            "spark.executor.memory": "900m",
            # Java's quick compiler: these executors live for seconds.
            "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1",
            **spark_conf,
        },
    )


def start(work: Path, name: str, engine: EngineParams, *stages: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [
            *(sys.executable, str(Path(__file__).with_name("on_cluster.py"))),
            *(str(work), name, engine.model_dump_json(), *stages),
        ],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=LONG_S)
    return process.returncode, told


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive_once_settled(work: Path) -> int:
    """Workers that run, when the master has noticed which do not."""
    found = find(work)
    running = sum(one.process() is not None for one in found.daemons) - 1
    deadline = time.monotonic() + LONG_S
    while found.alive_workers() != running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return running


def kill(daemon: cluster.Daemon) -> None:
    """SIGKILL a worker and its executors at once, as when their machine is gone."""
    process = daemon.process()
    assert process is not None
    for one in [process, *process.children(recursive=True)]:
        one.send_signal(signal.SIGKILL)
    psutil.wait_procs([process])


@pytest.fixture(scope="module")
def expected(work: Path) -> Path:
    """What DuckDB makes of the logs."""
    from on_cluster import run

    run(work, "duckdb", EngineParams(), ["ingest", "validate", "featurize"])
    return work / "duckdb"


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist()


def assert_same_tables(found: Path, expected: Path) -> int:
    """Every row of every table below, in order; floats to 1e-9 of their size. Returns how many rows."""
    folders = sorted({path.parent.relative_to(expected) for path in expected.rglob("part-*.parquet")})
    assert folders == sorted({path.parent.relative_to(found) for path in found.rglob("part-*.parquet")})
    compared = 0
    for folder in folders:
        own, others = rows(found / folder), rows(expected / folder)
        assert len(own) == len(others), folder
        for one, other in zip(own, others, strict=True):
            for name, value in other.items():
                if isinstance(value, float):
                    assert one[name] == pytest.approx(value, rel=1e-9, nan_ok=True), (folder, name)
                else:
                    assert one[name] == value, (folder, name)
        compared += len(own)
    return compared


def test_a_chain_of_stages_gives_the_rows_of_duckdb_though_a_worker_is_killed(
    work: Path, expected: Path
) -> None:
    """Ingest and validate on two workers; of featurize's, one is gone with all that it had shuffled.

    No question brings more to the driver than the two values beside each quantile boundary.
    """
    stages = start(work, "spark", engine_of(work), "ingest", "validate", "featurize")
    examples = work / "spark" / "features" / "retrieval_examples" / "training"
    wait_until(lambda: any(examples.glob("part-*.parquet")), stages)
    kill(find(work).daemons[1])
    code, told = finish(stages)
    assert code == 0, told[-3000:]
    assert "ExecutorLost" in told or "Lost executor" in told

    brought = json.loads((work / "spark" / "rows_at_the_driver.json").read_text())
    assert len(brought) > 100
    assert (
        max(brought)
        < 2 * 256
        < min(len(rows(expected / "validated" / name)) for name in ("watches", "impressions"))
    )
    assert assert_same_tables(work / "spark", expected) > 10_000
    metrics, wanted = (
        json.loads((side / "ingest-validate-featurize.json").read_text())
        for side in (work / "spark", expected)
    )
    assert metrics == wanted
    assert metrics["validate"]["quarantined_rows"] == 3
    assert metrics["ingest"]["duplicates_dropped"] == 3
    assert (work / "spark/features/quantiles.json").read_bytes() == (
        expected / "features/quantiles.json"
    ).read_bytes()
    # Judged by Great Expectations where the rows were.
    assert (work / "spark/validate-report/data_docs/index.html").is_file()
    assert (work / "spark/validate-report/curves.json").read_text() == (
        expected / "validate-report/curves.json"
    ).read_text()


def test_a_worker_with_another_version_is_named_before_anything_is_computed(work: Path) -> None:
    """A worker whose Spark says that it is another one."""
    conf = work / "other-conf"
    shutil.copytree(work / CLUSTER_DIR / "conf", conf)
    (conf / "spark-version-info.properties").write_text("version=4.0.99\n")
    alive = alive_once_settled(work)
    grown = find(work).start_worker(1.0, conf=conf)
    grown.wait_for_workers(alive + 1)
    try:
        code, told = finish(start(work, "other-version", engine_of(work), "ingest"))
    finally:
        kill(grown.daemons[-1])
    assert code == 1, told[-3000:]
    assert "another version of Spark" in told
    assert "Spark 4.0.99" in told
    assert not list((work / "other-version").rglob("part-*.parquet"))


def test_a_full_disk_in_mid_shuffle_is_named(work: Path) -> None:
    """Only the worker with the tiny disk has the memory that is asked for."""
    disk = work / "tiny disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted, so a full disk is NOT tested here: {mounted.stderr}")
    try:
        alive = alive_once_settled(work)
        grown = find(work).start_worker(1.2, scratch=disk)
        grown.wait_for_workers(alive + 1)
        code, told = finish(
            start(work, "full", engine_of(work, **{"spark.executor.memory": "1100m"}), "ingest")
        )
        kill(grown.daemons[-1])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert code == 1, told[-3000:]
    assert "a disk is full" in told
    assert "No space left on device" in told
    assert "--scratch" in told


def test_a_master_that_is_not_there_is_named(tmp_path: Path) -> None:
    nobody = cluster._free_port()
    params = EngineParams(kind="spark", master=f"spark://127.0.0.1:{nobody}")
    with (
        pytest.raises(InputError, match=rf"cannot be reached[\s\S]*:{nobody}[\s\S]*make cluster-up"),
        connect(params),
    ):
        raise AssertionError("connected to nobody")
    with (
        pytest.raises(InputError, match="names no host and port"),
        connect(EngineParams(kind="spark", master="spark://here")),
    ):
        raise AssertionError("connected to nowhere")


def test_a_second_cluster_in_one_folder_is_refused(work: Path) -> None:
    with pytest.raises(InputError, match="running here already"):
        cluster.up(work / CLUSTER_DIR)
