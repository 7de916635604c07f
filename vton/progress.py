"""Progress of long work: a bar in a terminal, a line every half minute in a log file.

Both go to stderr, so that stdout has results alone. Of several processes the first one reports.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from vton.processes import is_first_process

T = TypeVar("T")

LINE_EVERY = 30.0  # seconds between two lines of a log file
NOTE_EVERY = 1.0  # seconds between two notes beside a bar


class Progress:
    """What is done, how far it is and how long it still takes.

        with Progress("Scoring", total=200, unit="pair") as progress:
            for batch in batches:
                ...
                progress.advance(len(batch))

    done: how much was done before, by an earlier process; the time left doesn't count it
    note: returns what else to say, such as the loss; asked when something is shown
    """

    def __init__(
        self,
        doing: str,
        total: int,
        unit: str,
        done: int = 0,
        note: Callable[[], str] = str,
    ):
        self.doing = doing
        self.total = total
        self.unit = unit
        self.done = done
        self.note = note
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        self.done_before = self.done
        self.started = self.shown = time.monotonic()
        self.reports = is_first_process()
        if self.reports and sys.stderr.isatty():
            self.bar = terminal_bar()
            self.task = self.bar.add_task(self.doing, total=self.total, place="", note="")
            self.move_bar()
            self.bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.done = min(self.done + count, self.total)
        if not self.reports:
            return
        waited = time.monotonic() - self.shown
        if self.bar is not None:
            self.move_bar()
            if waited >= NOTE_EVERY:
                self.show()
        elif waited >= LINE_EVERY:
            self.show()

    def show(self) -> None:
        """Print the line of a log file, or renew the note beside the bar, at once."""
        self.shown = time.monotonic()
        if not self.reports:
            return
        if self.bar is not None:
            self.bar.update(self.task, note=self.note())
            return
        parts = [f"{self.doing}: {self.place()}", self.note()]
        if self.done < self.total:
            parts.append(self.time_left())
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def move_bar(self) -> None:
        self.bar.update(self.task, completed=self.done, place=self.place())

    def place(self) -> str:
        return f"{self.unit} {self.done}/{self.total}"

    def time_left(self) -> str:
        done_here = self.done - self.done_before
        if not done_here:
            return "time left unknown"
        seconds_each = (self.shown - self.started) / done_here
        minutes, seconds = divmod(round(seconds_each * (self.total - self.done)), 60)
        return f"{minutes} min {seconds:02} s left"


def track(items: Iterable[T], doing: str, total: int, unit: str) -> Iterator[T]:
    """The items one by one, each counted when the next is asked for."""
    with Progress(doing, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def terminal_bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[place]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Without a logger's warnings."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
