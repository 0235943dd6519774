"""Lines that say how far a stage is: the bars in the terminal and in the UI are made of them."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

REPORT_SECONDS = 5.0
T = TypeVar("T")


class Progress:
    """Says now and then how many rows are done, how fast they come and how long the rest will take.

    Args:
        what: the rows' name in the plural.
        report: receives a line every few seconds, and when all is done.
    """

    def __init__(self, total: int, what: str, report: Callable[[str], None]) -> None:
        self.total, self.what, self.report = total, what, report
        self.began = self.last = time.monotonic()

    def __call__(self, share: float, done: int) -> None:
        """`share` of the work is done, and `done` of the rows."""
        now = time.monotonic()
        if now - self.last > REPORT_SECONDS or done == self.total:
            spent = now - self.began
            rate, left = self.total * share / spent, spent * (1 - share) / share
            self.report(f"{done:,}/{self.total:,} {self.what} · {rate:.1f} a second · {left:.0f} s left")
            self.last = now


def counted(results: Iterable[T], units: int, rows: int, stage: str, log: Callable[[str], None]) -> Iterator[T]:
    """The results of all units of a file, one after the other; says how many of its rows they are."""
    progress = Progress(rows, "rows", lambda line: log(f"{stage}: {line}"))
    for number, result in enumerate(results, 1):
        yield result
        progress(number / units, rows * number // units)
