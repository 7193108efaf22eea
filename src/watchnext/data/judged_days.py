"""Days of logs whose rows have been judged, so that the next run need not judge them again.

What is kept of a day is what the judge counted: how many of its rows each rule applies to, and how many break it. Whether
too many do is decided batch by batch, over all days of a batch, in every run.

A day is known by a digest of what the judge sees of its rows. That is more than the rows: whether an earlier row has the
same key, whether the video that a row names is there and sound, and how many users share a page are columns of it, found
over all days in every run. A row that changes what is true of a row of another day so changes the digest of that day.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from watchnext.console import say
from watchnext.data.validation_rules import Rule, Thresholds

JUDGED_DAYS = "judged_days.json"

Counts = Mapping[str, tuple[int, int]]
"""Name of a rule -> rows that it applies to, and how many of these break it."""

_SOURCES = (
    "data/judged_days.py",
    "data/split.py",
    "data/validate.py",
    "data/validation_rules.py",
    "engine.py",
    "schema.py",
)
_LIBRARIES = ("duckdb", "great-expectations", "ibis-framework", "pandas")


class _Day(BaseModel):
    digest: str
    rules: dict[str, tuple[int, int]]


class _Kept(BaseModel):
    """The file, as `write` writes it."""

    made_by: str
    latest_at_s: float
    tables: dict[str, dict[str, _Day]]


@dataclass
class JudgedDays:
    """What an earlier run had judged, and what this one has.

    Attributes:
        made_by: digest of settings, source code and libraries: days of a run with another are judged again.
        latest_at_s: the last instant that is plausible, in seconds since 1970 UTC.
    """

    made_by: str
    latest_at_s: float
    _earlier: Mapping[str, Mapping[str, _Day]] = field(default_factory=dict)
    _found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, earlier_report: Path | None, thresholds: Thresholds, latest_at_s: float) -> "JudgedDays":
        """Begin a run.

        Args:
            earlier_report: the folder that `write` of an earlier run was given; None: there was none.
            thresholds: of this run.
            latest_at_s: see JudgedDays.
        """
        judged = cls(_made_by(thresholds), latest_at_s)
        path = None if earlier_report is None else earlier_report / JUDGED_DAYS
        if path is None or not path.is_file():
            return judged
        try:
            kept = _Kept.model_validate_json(path.read_bytes())
        except ValidationError:
            say(f"validate: {path} is damaged, so all days are judged anew")
            return judged
        # What was not in the future is not in the future later; by a clock that was set back it may be.
        if kept.made_by == judged.made_by and kept.latest_at_s <= latest_at_s:
            judged._earlier = kept.tables
        return judged

    def earlier(self, rules: Sequence[Rule], day: str, digest: str) -> Counts | None:
        """What an earlier run counted on a day of the rules' table; None: the day has to be judged.

        Args:
            rules: all rules of the table's rows.
            day: which.
            digest: of what the judge sees of its rows, save the columns that depend on the clock.
        """
        kept = self._earlier.get(rules[0].table, {}).get(day)
        if kept is None or kept.digest != digest or kept.rules.keys() != {rule.name for rule in rules}:
            return None
        # A row that was in the future need not be so for ever.
        return None if any(rule.by_clock and kept.rules[rule.name][1] for rule in rules) else kept.rules

    def keep(self, table: str, day: str, digest: str, counts: Counts) -> None:
        """Keep for the next run what was counted on a day, now or earlier."""
        self._found.setdefault(table, {})[day] = {"digest": digest, "rules": dict(counts)}

    def write(self, directory: Path) -> None:
        """Store what was kept in `directory`, which exists."""
        content = {"made_by": self.made_by, "latest_at_s": self.latest_at_s, "tables": self._found}
        (directory / JUDGED_DAYS).write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")


def _made_by(thresholds: Thresholds) -> str:
    digest = hashlib.sha256(json.dumps(thresholds.model_dump(mode="json"), sort_keys=True).encode())
    package = Path(__file__).parents[1]
    for name in _SOURCES:
        digest.update((package / name).read_bytes())
    for library in _LIBRARIES:
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()
