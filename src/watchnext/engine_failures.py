"""What engines, and whatever writes to disk, say when they fail by what they run on, and what to do about it."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from watchnext.errors import InputError

_FULL = r"No space left on device|Disk quota exceeded"


def another_version(master: str, own: str, offenders: Sequence[str]) -> InputError:
    """What is said when a cluster does not run the Spark of this process.

    Args:
        master: the setting `engine.master`.
        own: version of this process.
        offenders: who has which other one.
    """
    return InputError(
        f"the cluster runs another version of Spark than this process, which has {own}",
        where=f"engine.master: {master}",
        offenders=offenders,
        remedy=f"give the master and every worker Spark {own}, or install theirs here (pip install pyspark==...)",
    )


def spark_explained(master: str) -> contextlib.AbstractContextManager[None]:
    """Say what a person can do about it, where Spark fails by what it runs on rather than by what it was asked.

    Args:
        master: the setting `engine.master`.

    Raises:
        InputError: in the block: a disk is full, memory is short, versions differ, or the master gave up. Whatever else
            the block raises is left as it is.
    """
    return _explained(partial(_of_spark, master))


def duckdb_explained() -> contextlib.AbstractContextManager[None]:
    """The same of DuckDB.

    Raises:
        InputError: in the block: a disk is full, or memory is short.
    """
    return _explained(_of_duckdb)


def full_disk_explained() -> contextlib.AbstractContextManager[None]:
    """The same of whatever writes files, TensorFlow among them.

    Raises:
        InputError: in the block: a disk is full.
    """
    return _explained(_of_files)


@contextlib.contextmanager
def _explained(explain: Callable[[str], InputError | None]) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        explained = explain(str(error))
        if explained is None:
            raise
        raise explained from error


def _of_duckdb(text: str) -> InputError | None:
    where = "engine.kind: duckdb"
    said = text.splitlines()[:1]
    # What no longer fits its memory it would have put on a disk without room.
    if re.search(rf"{_FULL}|'max_temp_directory_size'", text):
        return InputError(
            "a disk is full that DuckDB writes to; nothing of this stage was kept",
            where=where,
            offenders=said,
            remedy="free it: a stage writes beside its last good outputs, and there too whatever exceeds "
            "engine.memory_limit_gb meanwhile",
        )
    if "Out of Memory Error" in text:
        return InputError(
            "DuckDB ran out of memory",
            where=where,
            offenders=said,
            remedy="raise engine.memory_limit_gb, or lower engine.threads or featurize.events_per_bucket",
        )
    return None


def _of_files(text: str) -> InputError | None:
    found = _first_line(_FULL, text)
    if not found:
        return None
    return InputError(
        "a disk is full",
        offenders=[found],
        remedy="free it and run again: the outputs of the last good run stand",
    )


def _of_spark(master: str, text: str) -> InputError | None:
    where = f"engine.master: {master}"
    versions = (
        r"InvalidClassException|local class incompatible|NoSuchMethodError|UnsupportedClassVersionError|"
        r"(NoClassDefFoundError|ClassNotFoundException): org[./]apache[./]spark"
    )
    gone = (
        r"All masters are unresponsive|Master removed our application|Spark cluster looks down|"
        r"on a stopped SparkContext|SparkContext was shut down"
    )
    memory = r"OutOfMemoryError|Cannot acquire .* memory|SparkOutOfMemoryError"
    if line := _first_line(_FULL, text):
        return InputError(
            "a disk is full that Spark writes to; nothing of this stage was kept",
            where=where,
            offenders=[line],
            remedy="free it, or give executors a larger one: SPARK_LOCAL_DIRS of every worker (`watchnext cluster up "
            "--scratch`), spark.local.dir with a local master",
        )
    if line := _first_line(versions, text):
        import pyspark

        return another_version(master, pyspark.__version__, [line])
    if line := _first_line(gone, text):
        return InputError(
            "Spark's master gave up on this stage, or does not understand it",
            where=where,
            offenders=[line],
            remedy="look at the logs of master and workers: executors that end at once have another version of Spark or "
            "Java, or too little memory; with spark.authenticate SPARK_CONF_DIR has to lead to the same secret",
        )
    if line := _first_line(memory, text):
        return InputError(
            "an executor or the driver ran out of memory",
            where=where,
            offenders=[line],
            remedy="raise spark.executor.memory in engine.spark_conf, or engine.memory_limit_gb for the driver",
        )
    return None


def _first_line(pattern: str, text: str) -> str:
    """The first line in which a pattern is found, cut to what a person reads; empty: none."""
    return next((line.strip()[:400] for line in text.splitlines() if re.search(pattern, line)), "")
