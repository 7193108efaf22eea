"""The error that a user is meant to read."""

from collections.abc import Sequence


class InputError(Exception):
    """Something the user supplied (a file, a table, a setting) cannot be used.

    The text says what was wrong, where, with the first offenders, and what to do. Command-line entry points
    print it without a traceback and exit with status 1; everything else lets it pass through.

    Args:
        what: one sentence, what was wrong.
        where: file, table, column or setting, as the user would name it.
        offenders: the first few offending values or rows, already formatted.
        remedy: what the user can do about it.
    """

    def __init__(
        self, what: str, *, where: str = "", offenders: Sequence[object] = (), remedy: str = ""
    ) -> None:
        self.what = what
        self.where = where
        self.offenders = tuple(offenders)[:5]
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.offenders:
            lines.append("  first offenders: " + "; ".join(str(offender) for offender in self.offenders))
        if self.remedy:
            lines.append(f"  what to do: {self.remedy}")
        return "\n".join(lines)
