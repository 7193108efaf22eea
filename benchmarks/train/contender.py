"""Processes that hold what is measured in memory and take turns."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import CannotMeasure
from watchnext.console import say

ROOT = Path(__file__).parents[2]
SECONDS_TO_ANSWER = 300
Rates = dict[str, list[float]]
"""What was measured -> examples (or floating-point operations) per second, one of each round."""


class Contender:
    """A process that waits until it is asked.

    Args:
        name: in messages and measurements.
        command: the process.
        tasks: task -> steps of one measurement.
    """

    def __init__(self, name: str, command: Sequence[str], tasks: Mapping[str, int]) -> None:
        self.name, self.tasks = name, tasks
        self.peak_rss_gb = 0.0
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}
        try:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise CannotMeasure(f"{name} cannot start: {error}; run it by `make bench-train`") from error
        self.facts = self._answer()

    def measure(self, task: str) -> float:
        """Examples per second of one task."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"task": task, "steps": self.tasks[task]}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peak_rss_gb = answer["peak_rss_gb"]
        return float(answer["examples"] / answer["seconds"])

    def end(self) -> None:
        """Let it go, and with it its memory."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(SECONDS_TO_ANSWER)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CannotMeasure(f"{self.name} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def interleave(contenders: Sequence[Contender], rounds: int, program: str) -> Rates:
    """Every task of every contender once a round; `program` tells the reader how far it is."""
    rates: Rates = {}
    for number in range(rounds):
        for contender in contenders:
            for task in contender.tasks:
                rates.setdefault(f"{contender.name} {task}", []).append(contender.measure(task))
        say(f"{program}: round {number + 1} of {rounds}")
    return rates
