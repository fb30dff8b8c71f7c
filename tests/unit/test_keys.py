"""Keys: one slot for each shard, one name for each thing, and the channels of the contract."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from busq.protocol import keys
from busq.protocol.keys import KEY_TABLE, ShardKeys, done_prefix, meta, notice_prefix

NAMES = [
    "events", "cancelled", "tombstones", "deadlines", "timers", "scheduled", "queues", "counters", "workers",
    "worker_info", "drains", "suspects", "hooks", "rules", "walk", "waiting", "cascades", "keyed", "dead", "succeeded",
    "failed", "cancelled_jobs", "birth",
]  # fmt: skip


def every_key(own: ShardKeys) -> list[bytes]:
    of_one = [own.job("j"), own.job("a:{b}"), own.stream("q"), own.stream("{9}"), own.scope("s")]
    of_one += [own.children("j"), own.fallen("j"), own.whole]
    return of_one + [getattr(own, name) for name in NAMES]


@pytest.mark.parametrize("shard", [0, 1, 1023])
def test_all_keys_of_a_shard_share_a_slot(shard: int) -> None:
    assert len({key_slot(key) for key in every_key(ShardKeys("busq", shard))}) == 1


def test_no_two_things_share_a_key() -> None:
    found = [key for shard in (0, 1, 11) for name in ("busq", "bus") for key in every_key(ShardKeys(name, shard))]
    assert len(set(found)) == len(found)


def test_a_job_and_a_queue_called_like_a_key_do_not_meet_it() -> None:
    own = ShardKeys("busq", 0)
    fixed = {getattr(own, name) for name in NAMES}
    assert not fixed & {
        each
        for name in NAMES
        for each in (own.job(name), own.stream(name), own.scope(name), own.children(name), own.fallen(name))
    }


def test_the_channel_of_a_cancel_is_that_of_the_contract() -> None:
    assert notice_prefix("busq") + b"j" == b"cancel:j"
    assert notice_prefix("other") + b"j" == b"other:cancel:j"
    assert done_prefix("busq") + b"j" == b"busq:done:j"
    assert meta("busq") == b"busq:meta"


def test_every_key_has_a_row_in_the_table() -> None:
    own = ShardKeys("busq", 0)
    rows = {row[0] for row in KEY_TABLE}
    written = {getattr(own, name).decode().replace("busq:{0}", "{s}") for name in NAMES}
    written = {"{s}:ended:<state>" if ":ended:" in name else name for name in written}
    assert rows == written | {
        "meta", "{s}:job:<jid>", "{s}:queue:<queue>", "{s}:scope:<id>", "{s}:children:<jid>",
        "{s}:fallen:<jid>", "{s}:rate:<queue or group>",
    }  # fmt: skip
    assert all(all(row) for row in KEY_TABLE)


def test_this_page_lists_every_key_there_is() -> None:
    listed = {name for name in vars(ShardKeys) if not name.startswith("_")}
    assert listed == {*NAMES, "job", "stream", "scope", "children", "fallen", "rate", "whole"}
    assert keys.GROUP == b"busq"
