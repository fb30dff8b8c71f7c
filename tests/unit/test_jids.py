"""Jids: what is refused, how new ones sort, and that a tree of jobs shares a shard."""

from __future__ import annotations

import binascii
import os
import signal
import threading
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busq.errors import BadJid
from busq.protocol.jids import (
    check_child,
    check_jid,
    check_key,
    check_keyed,
    child_jid,
    flaw_of,
    keyed_jid,
    new_jid,
    new_jids,
    place,
    place_of_key,
    shard_of,
)

KEYS = st.text(min_size=1, max_size=200).filter(str.isprintable)
JIDS = st.from_regex(r"[A-Za-z0-9_.:\-]{1,128}", fullmatch=True)


@given(JIDS)
def test_every_jid_of_the_alphabet_passes_as_it_is(jid: str) -> None:
    assert check_jid(jid) == jid
    assert flaw_of(jid) is None


@given(JIDS, st.characters(), st.data())
def test_an_odd_character_is_named_with_its_position(jid: str, odd: str, data: st.DataObject) -> None:
    if odd.isascii() and (odd.isalnum() or odd in "-_.:"):
        return
    at = data.draw(st.integers(0, len(jid)))
    with pytest.raises(BadJid) as caught:
        check_jid(jid[:at] + odd + jid[at:])
    assert f"has {odd!r} at position {at} " in str(caught.value)


@pytest.mark.parametrize(
    ("jid", "words"),
    [
        ("", "is empty"),
        ("a" * 129, "has 129"),
        ("order 17", "' ' at position 5"),
        ("order-17\n", r"'\n' at position 8"),
        ("jöb", "'ö' at position 1"),
        ("a\0", r"'\x00' at position 1"),
        ("\ud800", r"'\ud800' at position 0"),
        (b"abc", "of type bytes"),
        (17, "of type int"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_jid_is_refused_and_the_message_says_why(jid: object, words: str) -> None:
    with pytest.raises(BadJid) as caught:
        check_jid(jid)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_long_jid_does_not_make_a_long_message() -> None:
    with pytest.raises(BadJid) as caught:
        check_jid("x" * 1_000_000)
    assert len(str(caught.value)) < 400


def test_a_new_jid_is_a_uuid_of_version_7_that_holds_the_time() -> None:
    before = time.time_ns() // 1_000_000
    jid = new_jid()
    made = uuid.UUID(jid)
    assert check_jid(jid) == made.hex
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= int(jid[:12], 16) <= time.time_ns() // 1_000_000 + 1


def test_new_jids_rise_and_never_repeat() -> None:
    jids = new_jids(20_000)
    assert jids == sorted(set(jids))


def test_new_jids_go_on_rising_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_jid()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert [first, *(later := new_jids(100))] == sorted({first, *later})


def test_a_full_count_moves_on_to_the_next_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    from busq.protocol import jids

    mint = jids._Mint()
    first = mint.make()
    mint._count = (1 << 26) - 2
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    made = [mint.make() for _ in range(3)]
    assert made == sorted(set(made))
    assert [int(jid[:12], 16) - int(first[:12], 16) for jid in made] == [0, 1, 1]
    assert all(uuid.UUID(jid).version == 7 and uuid.UUID(jid).variant == uuid.RFC_4122 for jid in made)


def test_threads_never_get_the_same_jid() -> None:
    made: list[list[str]] = []
    threads = [threading.Thread(target=lambda: made.append(new_jids(2_000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(jids == sorted(jids) for jids in made)
    assert len({jid for jids in made for jid in jids}) == 16_000


def test_a_jid_is_made_while_its_lock_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads alone rarely show a missing lock, so the clock looks whether it is held when it is asked."""
    from busq.protocol import jids

    mint = jids._Mint()
    held: list[bool] = []

    def time_ns() -> int:
        held.append(mint._lock.locked())
        return 0

    monkeypatch.setattr(time, "time_ns", time_ns)
    mint.make()
    assert held == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_shares_no_random_numbers_even_when_forked_inside_the_lock() -> None:
    from busq.protocol import jids

    new_jid()
    rest = jids._mint._tails
    reader, writer = os.pipe()
    with jids._mint._lock:
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # stuck at the old lock, it ends here and sends nothing
            signal.alarm(5)
            made = "".join(new_jids(50))
            os.write(writer, f"{made} {jids._mint._tails[:64]}".encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0
    made, tails = told.split()
    assert len(made) == 32 * 50
    assert tails not in rest
    assert not {made[n : n + 32] for n in range(0, len(made), 32)} & set(new_jids(50))


@given(JIDS)
def test_a_place_fits_into_16_bits_and_one_shard_takes_all(jid: str) -> None:
    assert 0 <= place(jid) < 65536
    assert shard_of(jid, 1) == 0


def test_places_are_the_same_in_every_version() -> None:
    """These figures are on the wire of every bus with several shards: they never change."""
    assert place("123456789") == 0x31C3
    assert place("order-17") == 0xC850
    assert place("0190b6a1c5d27e3f8a0c4d5e6f708192.3fa1") == 0x3FA1
    assert shard_of("123456789", 16) == 0x31C3 % 16
    assert place_of_key("123456789") == 0x31C3
    assert place_of_key("0190b6a1c5d27e3f8a0c4d5e6f708192.3fa1") != 0x3FA1


@pytest.mark.parametrize("jid", ["a" * 32 + ".3FA1", "A" * 32 + ".3fa1", "a" * 32 + ":3fa1", "a" * 32 + ".3fa1.0001"])
def test_only_the_very_shape_of_a_made_child_carries_a_place(jid: str) -> None:
    assert place(jid) == binascii.crc_hqx(jid.encode(), 0)


@given(JIDS, st.integers(1, 1024))
def test_children_and_their_children_live_in_the_roots_shard(root: str, shards: int) -> None:
    child = child_jid(root)
    grandchild = child_jid(child)
    assert check_jid(child) == child
    assert child != grandchild
    assert shard_of(root, shards) == shard_of(child, shards) == shard_of(grandchild, shards)
    check_child(child, root, shards)
    check_child(grandchild, root, shards)


@given(JIDS, JIDS, st.integers(1, 64))
def test_a_chosen_child_jid_is_refused_exactly_when_it_falls_elsewhere(jid: str, parent: str, shards: int) -> None:
    if shard_of(jid, shards) == shard_of(parent, shards):
        check_child(jid, parent, shards)
        return
    with pytest.raises(BadJid) as caught:
        check_child(jid, parent, shards)
    assert repr(jid) in str(caught.value)
    assert repr(parent) in str(caught.value)


@given(KEYS, st.integers(1, 1024))
def test_all_jobs_of_a_key_and_their_children_live_in_one_shard(key: str, shards: int) -> None:
    first, second = keyed_jid(check_key(key)), keyed_jid(key)
    assert check_jid(first) == first != second
    for jid in (first, second, child_jid(first)):
        check_keyed(jid, key, shards)
    check_child(second, first, shards)


@given(JIDS, KEYS, st.integers(1, 64), st.booleans())
def test_a_chosen_jid_is_refused_exactly_when_it_falls_elsewhere_than_its_key(
    jid: str, key: str, shards: int, of_a_child: bool
) -> None:
    parent = child_jid(jid) if of_a_child else None
    if shard_of(jid, shards) == place_of_key(key) % shards:
        check_keyed(jid, key, shards, parent=parent)
        return
    with pytest.raises(BadJid) as caught:
        check_keyed(jid, key, shards, parent=parent)
    assert repr(key) in str(caught.value)
    assert repr(parent or jid) in str(caught.value)


def test_new_jids_spread_evenly_over_shards() -> None:
    counts = [0] * 8
    for jid in new_jids(8_000):
        counts[shard_of(jid, 8)] += 1
    assert min(counts) > 800
