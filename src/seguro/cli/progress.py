"""Progress on a terminal: bars with time left; nothing where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from seguro.engine.loop import Progress


@contextmanager
def counting(out: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that moves one bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=out, disable=not out.is_terminal, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def training(out: Console) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows a `Progress`: updates, time left, loss and best score.

    Without a terminal a plain line is printed about every twentieth of the way.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, console=out, disable=not out.is_terminal, transient=True) as bars:
        task = bars.add_task("training", total=None, note="")
        shown = 0

        def show(p: Progress) -> None:
            nonlocal shown
            loss = p.values.get("loss")
            note = f"{clock(p.seconds_left)} left" + (f"  loss {loss:.3f}" if loss is not None else "")
            note += f"  best {p.best:.3f}" if p.best is not None else ""
            known = p.updates < 10**8
            bars.update(task, completed=p.update, total=p.updates if known else None, note=note)
            part = int(20 * p.update / p.updates) if known else 0
            if not out.is_terminal and part > shown:
                shown = part
                out.print(f"  update {p.update}/{p.updates}  {note}")

        yield show


def clock(seconds: float) -> str:
    """Return seconds as "1:02:03" or "2:03"."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
