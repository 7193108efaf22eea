"""What of Spark's failures is explained, and what is left to its own words. `tests/scale/` has real ones."""

import pytest

from watchnext.errors import InputError
from watchnext.spark_failures import failures_explained

MASTER = "spark://127.0.0.1:7077"
EXPLAINED = {
    "Task 3 failed\njava.io.IOException: No space left on device\n\tat java.io": "a disk is full[\\s\\S]*--scratch",
    "Application has been killed. Reason: All masters are unresponsive! Giving up.": "master gave up",
    "java.lang.OutOfMemoryError: Java heap space": "out of memory[\\s\\S]*spark.executor.memory",
}


@pytest.mark.parametrize("said", EXPLAINED)
def test_what_a_person_can_mend_is_explained_with_the_line_that_says_it(said: str) -> None:
    """Seen to fail with the pattern of a full disk emptied: a full disk was then an unexplained failure."""
    with pytest.raises(InputError, match=EXPLAINED[said]) as told, failures_explained(MASTER):
        raise RuntimeError(said)
    assert MASTER in str(told.value)
    assert isinstance(told.value.__cause__, RuntimeError)
    assert "\tat java.io" not in str(told.value)


def test_another_version_names_that_of_this_process() -> None:
    pyspark = pytest.importorskip("pyspark")
    with pytest.raises(InputError, match=f"which has {pyspark.__version__}"), failures_explained(MASTER):
        raise RuntimeError("java.io.InvalidClassException: org.apache.spark.rdd; local class incompatible")


def test_what_was_refused_already_and_what_is_a_defect_are_left_alone() -> None:
    with pytest.raises(InputError, match=r"^no table here"), failures_explained(MASTER):
        raise InputError("no table here: No space left on device")
    with pytest.raises(ZeroDivisionError), failures_explained(MASTER):
        raise ZeroDivisionError("division by zero")
