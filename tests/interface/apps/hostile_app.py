"""Handlers that say what nobody should print as it is, and what nobody should print at all."""

from __future__ import annotations

import logging
import threading

import structlog

import busq
from tests.interface.hostile import IN_A_URL, SPELL

bus = busq.Bus()


class Odd:
    def __repr__(self) -> str:
        return f"odd {SPELL} {IN_A_URL}"


@bus.job
async def speaks(secret: str) -> str:
    structlog.get_logger("app").warning(SPELL, words=SPELL, odd=Odd(), nested={"a": [SPELL, IN_A_URL]}, **{SPELL: 1})
    logging.getLogger("lib").error("by logging %s %s", SPELL, IN_A_URL)
    try:
        raise ValueError(SPELL + IN_A_URL)
    except ValueError:
        logging.getLogger("lib").exception("caught")
    busq.current_job().progress(0.5, SPELL)
    thread = threading.Thread(target=_raise, name=SPELL)
    thread.start()
    thread.join()
    return "spoken"


def _raise() -> None:
    raise RuntimeError(SPELL + IN_A_URL)


@bus.job
async def raises(secret: str) -> None:
    raise type(SPELL.replace("\0", ""), (Exception,), {})(SPELL + IN_A_URL)


@bus.job(pool="process")
def raises_in_a_child(secret: str) -> None:
    raise ValueError(SPELL + IN_A_URL)
