"""The side of a contender: it says that it is ready, then measures whenever it is asked to.

One line of JSON in, one out. In: what to measure and how many steps. Out: examples and seconds.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def measure(step: Callable[[], object], *, steps: int, examples_per_step: int) -> dict[str, float]:
    """Wall-clock time of `steps` calls of `step`, each of which waits until its work is done."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return {"examples": steps * examples_per_step, "seconds": time.perf_counter() - began}


def peak_rss_gb() -> float:
    """The most memory that this process had at once, in 10^9 bytes."""
    with Path("/proc/self/status").open(encoding="utf-8") as status:
        kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return kilobytes * 1024 / 1e9


def serve(tasks: Mapping[str, Callable[[int], Mapping[str, float]]], facts: Mapping[str, object]) -> None:
    """Answer until there is no more input.

    Args:
        tasks: name -> a function that runs so many steps and gives what `measure` gives.
        facts: what the first line tells beside being ready.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # Whatever a library prints is no answer.

    def answer(content: Mapping[str, object]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer({"ready": True, **facts})
    for line in sys.stdin:
        request = json.loads(line)
        answer({**tasks[request["task"]](request["steps"]), "peak_rss_gb": peak_rss_gb()})
