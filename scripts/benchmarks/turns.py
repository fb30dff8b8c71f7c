"""
The order in which two sides are measured: in turns, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Measured = list[float]
"""One round's samples, in seconds."""

Side = Callable[[int], Measured]
"""Called with the size of its round."""


def in_turns(pairs: int, samples: int, sides: Sequence[Side], *, warm_up: int | None = None) -> list[list[Measured]]:
    """
    For each side its rounds: `pairs` of them, with `samples` altogether.

    Before that comes a turn that does not count, in which connections are opened and scripts loaded: of `warm_up`
    samples, else as long as the others.
    """
    each = -(-samples // pairs)  # rounded up
    for side in sides:
        side(each if warm_up is None else warm_up)
    turns = [[side(each) for side in sides] for _ in range(pairs)]
    return [[turn[number] for turn in turns] for number in range(len(sides))]
