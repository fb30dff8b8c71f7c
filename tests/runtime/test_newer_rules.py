"""A worker beside a rule of a newer busq: it starts nothing that the rule may cover, says so once, and goes on."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from busq import events
from busq.store.store import Store
from tests.runtime.bench import bench, until
from tests.store.bench import NEAR, rewrite_rule


async def test_jobs_under_a_newer_rule_wait_and_run_when_it_is_taken_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("busq.worker.reception.UNJUDGED_S", 0.01)
    async with bench(redis_url) as b:

        @b.bus.job
        async def add(n: int) -> int:
            return n + 1

        waiting = [await add.enqueue(n) for n in range(3)]
        scope = await b.bus.cancel_kind("nobody")
        await rewrite_rule(await _store(b.bus), scope.id, condition=["and", NEAR])
        with capture_logs() as lines:
            await b.work()
            await b.watch()
            for handle in waiting:

                async def back_twice(jid: str = handle.jid) -> bool:
                    return (await b.names(jid)).count("handed_back") >= 2

                await until(back_twice)
            assert await (await add.enqueue(9)).result(timeout=30) == 10
            await scope.revoke()
            assert [await handle.result(timeout=30) for handle in waiting] == [1, 2, 3]
        told = [line for line in lines if line["event"] == events.RULE_UNREADABLE]
        assert [line["rule"] for line in told] == ["1"]
        assert (await b.bus.stats()).dead == 0


async def _store(bus: object) -> Store:
    return (await bus._link()).store  # type: ignore[attr-defined, no-any-return]
