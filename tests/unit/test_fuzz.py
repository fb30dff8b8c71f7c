"""
Any bytes from the wire become a value or an error of ours: mutated inputs, some thousands in a run of the tests.

`FUZZ_INPUTS=10000000 pytest tests/unit/test_fuzz.py` tries as many of each decoder; `FUZZ_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from busq.errors import BadPayload, BadRecord, BadResult
from busq.protocol.codec import decode_error, decode_payload, decode_result
from busq.protocol.hook import read_clean_up
from busq.protocol.job import Event, Job, event_from_line, history_from_record, job_from_record
from busq.protocol.tree import read_finished
from busq.store.roster import ProcessCard, process_card, read_card
from busq.store.streams import Entry, read_entry
from busq.worker.executors.frames import BrokenFrames, WorkersInbox
from tests.golden.making import MIB, read_wire, versions

INPUTS = int(os.environ.get("FUZZ_INPUTS", "4000"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**32)

WIRE = read_wire(versions()[-1])
CODED = [each[0] for each in (*WIRE.payloads, *WIRE.results, *WIRE.errors)] + [WIRE.clean_up, WIRE.finished]
BOMBS = [
    b"\x01" + b"\x91" * 100_000,  # nested in itself
    b"\x01\xdd\xff\xff\xff\xff", b"\x01\xdf\xff\xff\xff\xff", b"\x01\xc6\xff\xff\xff\xff",  # 2**32 of it
    b"\x01\x92\x90\xdf\xff\xff\xff\xff", b"\x01\x92\xdd\xff\xff\xff\xff\x80",
    b"\x01\xc7\x0c\xff" + b"\xff" * 12, b"\x01\xd7\xff" + b"\xff" * 8,  # moments out of all time
    b"\x01\xcb\x7f\xf8" + b"\x00" * 6, b"\x01\xc1", b"\x01\xa1\xff", b"\x01\x81\x90\x01", b"\x01", b"", b"\x02",
    b"\x01\x81\x81\x01\x02\x03", b"\x01\x92\x90\x81\x01\x02", b"\x01\x93\xa1a\xa1b\xa1\xff",
]  # fmt: skip


def mutants(corpus: Sequence[bytes], count: int) -> Iterator[bytes]:
    """The corpus itself, then `count` times one of it, changed once or a few times."""
    rng = random.Random(SEED)
    yield from corpus
    for _ in range(count):
        data = bytearray(rng.choice(corpus)[:4096])
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(6):
                case 0 if data:
                    data[at % len(data)] ^= 1 << rng.randrange(8)
                case 1 if data:
                    data[at % len(data)] = rng.choice(b"\x00\x01\x7f\x80\x8f\x90\x9f\xc0\xc1\xc7\xd9\xdc\xdd\xdf\xff")
                case 2:
                    data[at:at] = rng.randbytes(rng.choice((1, 2, 5, 9)))
                case 3:
                    del data[at : at + rng.choice((1, 2, 5, 1000))]
                case 4:
                    other = rng.choice(corpus)[:4096]
                    data[at:] = other[rng.randrange(len(other) + 1) :]
                case _:
                    data[at:at] = data[: rng.randrange(64)]
        yield bytes(data)


def tried(
    decode: Callable[[bytes], Any], corpus: Sequence[bytes], *ours: type[Exception], count: int = INPUTS
) -> tuple[int, int]:
    """How many inputs were read and how many refused; anything else fails, with the input and the seed."""
    read = refused = 0
    for data in mutants(corpus, count):
        try:
            decode(data)
            read += 1
        except ours:
            refused += 1
        except BaseException as error:
            pytest.fail(f"{decode} raised {error!r} for {data!r} (FUZZ_SEED={SEED})")
    return read, refused


@pytest.mark.parametrize(
    ("decode", "errors"),
    [
        (decode_payload, [BadPayload]),
        (decode_result, [BadPayload]),
        (lambda data: decode_result(data, dict[str, list[int]]), [BadPayload, BadResult]),
        (decode_error, [BadPayload]),
        (read_clean_up, [BadPayload]),
        (read_finished, [BadPayload]),
    ],
    ids=["payload", "result", "typed result", "error", "clean-up", "finished"],
)
def test_any_bytes_are_a_value_or_refused(decode: Callable[[bytes], Any], errors: list[type[Exception]]) -> None:
    _, refused = tried(decode, CODED + BOMBS, *errors)
    assert refused > INPUTS // 10


def test_any_frame_of_a_child_is_read_or_the_child_is_given_up() -> None:
    def decode(data: bytes) -> object:
        return list(WorkersInbox(MIB).frames(data))

    read, refused = tried(decode, [data for data, _ in WIRE.frames], BrokenFrames)
    assert read
    assert refused


def test_any_record_is_a_job_or_refused_for_its_state() -> None:
    records = [fields for _, fields, _, _ in WIRE.records]
    values = [value for fields in records for _, value in fields] + BOMBS + [b"1e308", b"-1", b"nan", b"9" * 400]
    rng = random.Random(SEED)
    fuzzed = mutants(values, INPUTS * 4)

    def decode(_: bytes) -> object:
        record = dict(rng.choice(records))
        for name in rng.sample(sorted(record), k=min(len(record), 3)):
            record[name] = next(fuzzed, b"")
        history = history_from_record(record)
        assert all(type(line) is Event for line in history)
        assert len(history) <= len(record)
        job = job_from_record("jid", record)
        assert type(job) is Job
        return job

    read, _ = tried(decode, [b""], BadRecord)
    assert read > INPUTS // 2


def test_any_line_entry_and_card_is_read_without_an_error() -> None:
    lines = [line.partition(b"\t")[2] for line, _ in WIRE.events]
    tried(lambda data: _is(event_from_line(data), Event), lines)
    tried(lambda data: _is(read_entry(0, "q", b"1-1", [b"jid", data, b"kind", data]), Entry), [b"jid", b"a" * 128])
    tried(lambda data: _is(read_entry(0, "q", b"1-1", data.split(b"\x00")), Entry), [b"jid\x00j\x00kind\x00k"])
    tried(lambda data: _is(read_card(data), ProcessCard, type(None)), [process_card("worker").encoded(), b"[" * 5000])


def _is(value: object, *wanted: type) -> None:
    assert isinstance(value, wanted)
