"""What Spark says when it fails by what it runs on, and what a person can do about it."""

import contextlib
import re
from collections.abc import Iterator, Sequence

from watchnext.errors import InputError


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


@contextlib.contextmanager
def failures_explained(master: str) -> Iterator[None]:
    """Say what a person can do about it, where Spark fails by what it runs on rather than by what it was asked.

    Args:
        master: the setting `engine.master`.

    Raises:
        InputError: a disk is full, memory is short, versions differ, or the master gave up. Whatever else the block raises
            is left as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        explained = _explanation(master, str(error))
        if explained is None:
            raise
        raise explained from error


def _explanation(master: str, text: str) -> InputError | None:
    where = f"engine.master: {master}"

    def first(pattern: str) -> str:
        return next((line.strip()[:400] for line in text.splitlines() if re.search(pattern, line)), "")

    full = r"No space left on device|Disk quota exceeded"
    versions = (
        r"InvalidClassException|local class incompatible|NoSuchMethodError|UnsupportedClassVersionError|"
        r"(NoClassDefFoundError|ClassNotFoundException): org[./]apache[./]spark"
    )
    gone = (
        r"All masters are unresponsive|Master removed our application|Spark cluster looks down|"
        r"on a stopped SparkContext|SparkContext was shut down"
    )
    memory = r"OutOfMemoryError|Cannot acquire .* memory|SparkOutOfMemoryError"
    if line := first(full):
        return InputError(
            "a disk is full that Spark writes to; nothing of this stage was kept",
            where=where,
            offenders=[line],
            remedy="free it, or give executors a larger one: SPARK_LOCAL_DIRS of every worker (`watchnext cluster up "
            "--scratch`), spark.local.dir with a local master",
        )
    if line := first(versions):
        import pyspark

        return another_version(master, pyspark.__version__, [line])
    if line := first(gone):
        return InputError(
            "Spark's master gave up on this stage, or does not understand it",
            where=where,
            offenders=[line],
            remedy="look at the logs of master and workers: executors that end at once have another version of Spark or "
            "Java, or too little memory; with spark.authenticate SPARK_CONF_DIR has to lead to the same secret",
        )
    if line := first(memory):
        return InputError(
            "an executor or the driver ran out of memory",
            where=where,
            offenders=[line],
            remedy="raise spark.executor.memory in engine.spark_conf, or engine.memory_limit_gb for the driver",
        )
    return None
