"""What a person sees while a stage works: progress on a terminal, plain lines in a log, tables, no native noise."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_LOG_WIDTH = 120
"""Columns of a table in a log, whose reader's window nothing tells."""

console = Console(
    stderr=True,
    highlight=False,
    soft_wrap=not sys.stderr.isatty(),
    width=None if sys.stderr.isatty() else _LOG_WIDTH,
)

_LOG_EVERY_S = 10.0
T = TypeVar("T")


def say(message: str) -> None:
    """Print one line for the reader of the terminal or the log."""
    console.print(message, markup=False)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` while showing how far the work is: a bar on a terminal, a line every ten seconds in a log."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)
        return
    started = last_said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_said >= _LOG_EVERY_S:
            last_said = now
            of_total = f"/{total}" if total else ""
            say(f"{description}: {done}{of_total} after {now - started:.0f} s")


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table to the reader of the terminal or the log."""
    table = Table(title=title, title_justify="left", show_lines=False)
    for place, column in enumerate(header):
        # What a row is about stays in one piece; the others give way.
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table, markup=False)


@contextlib.contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Hold back what native libraries write to file descriptor 2 while the block runs.

    TensorFlow's and ScaNN's C++ code logs past Python and past `TF_CPP_MIN_LOG_LEVEL`. What was held back is
    shown after all when the block raises, so that no error loses its explanation.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
