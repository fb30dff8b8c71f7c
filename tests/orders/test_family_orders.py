"""
Every order of a few racing steps in which a parent is cancelled, tried one by one.

Its cancel goes down to its children as each one's policy says, and nothing else does: whoever starts, retries or bears
what, and however far the cascade is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb, is_terminal
from busq.store.forms import Settlement
from busq.store.store import Store
from tests.orders.actors import RETRIES, STOPPED, Actors, orders, try_all
from tests.store.bench import KIND, QUEUE, Bench, Held


class FamilyRace(Actors):
    """A running parent and its child, a second one that may be born meanwhile, and a cancel that comes down."""

    def __init__(self, bench: Bench, policy: str) -> None:
        super().__init__(bench)
        self.policy: Mapping[str, str] = {} if policy == "cancel" else {"policy": policy}
        self.cancelled = False  # the parent has been asked to stop

    async def open(self) -> None:
        self.parent = await self.bench.run(await self.admit(), retries=RETRIES)
        self.child = await self.bench.take(await self.admit(parent=self.parent.jid, **self.policy), self.bench.b)

    async def _promise(self) -> None:
        """The parent was asked to stop: so were its open children, if they are to be cancelled with it."""
        self.cancelled = True
        for jid in self.jids[1:]:
            if (await self.bench.job(jid)).is_terminal:
                continue
            if (await self.bench.job(jid)).on_parent_cancel == "cancel":
                self.doomed.add(jid)
            elif await self.bench.state(jid) not in STOPPED:
                self.spared.add(jid)

    async def cancel_parent(self) -> None:
        verdict = (await self.bench.cancel(self.parent.jid)).verdict
        if verdict in ("signalled", "cancelled"):
            await self._promise()

    async def decide_parent(self) -> None:
        """The same by a rule, which asks for nothing of the child."""
        live = not is_terminal((await self.all_shown())[self.parent.jid].state)
        await self.scopes.decide(self.scope, Filter(jid_prefix=self.parent.jid))
        if live:
            await self._promise()

    async def cancel_child(self) -> None:
        await self.bench.cancel(self.child.jid)
        self.spared.discard(self.child.jid)

    async def spawn(self) -> None:
        jid = self.bench.fresh("child")
        word, _, _ = await self.bench.spawn(self.parent, jid)
        if word == "enqueued":
            assert not self.cancelled, "a cancelled parent gains no children"
            self.jids.append(jid)

    async def bear(self) -> None:
        """A child that somebody else enqueues."""
        jid = self.bench.fresh("child")
        word, _ = await self.bench.admit(jid, parent=self.parent.jid, **self.policy)
        if word == "enqueued":
            assert not self.cancelled, "a cancelled parent gains no children"
            self.jids.append(jid)

    async def start_child(self) -> None:
        await self.start(self.bench.b, self.child)

    async def finish_child(self) -> None:
        await self.bench.settle(Verb.FINISH, self.child, by=self.bench.b)

    async def fail_child(self) -> None:
        await self.bench.settle(Verb.FINISH, self.child, "failed", by=self.bench.b, cause="error")

    async def retry_child(self) -> None:
        await self.bench.settle(Verb.RETRY, self.child, by=self.bench.b, cause="error", delay_s=1)

    async def renew_child(self) -> None:
        before = await self.bench.record(self.child.jid)
        (answer,) = await self.bench.beat(self.bench.b, [self.child])
        mine = before.get(b"token") == self.child.token.encode() and before[b"state"] == b"running"
        if self.child.jid in self.doomed and mine:
            assert answer.word == "cancelling", "a running child is told at its worker's next beat"

    async def finish_parent(self) -> None:
        end = Settlement(
            jid=self.parent.jid, entry=self.parent.entry, token=self.parent.token, attempt=1, outcome="succeeded",
            finalizer=True,
        )  # fmt: skip
        await self.bench.a.settle(Verb.FINISH, 0, QUEUE, [end])
        await self._learn_of_finalizer()

    async def _learn_of_finalizer(self) -> None:
        final = (await self.bench.record(self.parent.jid)).get(b"final", b"").decode()
        if final and final not in self.jids:
            assert not self.cancelled, "a cancelled parent is not finalized"
            self.jids.append(final)

    async def fail_parent(self) -> None:
        await self.bench.settle(Verb.FINISH, self.parent, "failed", cause="error")

    async def look(self) -> None:
        await super().look()
        await self._learn_of_finalizer()
        if self.cancelled:
            assert (await self.all_shown())[self.parent.jid].state in STOPPED

    async def settle_all(self) -> None:
        await super().settle_all()
        if self.cancelled:
            for jid in self.jids[1:]:
                job = await self.bench.job(jid)
                assert job.is_terminal or job.state in STOPPED or job.on_parent_cancel != "cancel", (
                    "the cascade is over"
                )

    async def start(self, by: Store, held: Held) -> None:
        """A finalizer has a kind of its own."""
        if held.jid == self.jids[0] or not (await self.bench.job(held.jid)).finalize_of:
            await super().start(by, held)
            return
        answer = await self.bench.begin(held, by, kind=f"{KIND}/finalize")
        assert answer.word == "stale" or not self.cancelled, "a cancelled parent is not finalized"

    async def end(self) -> None:
        await self.come_to_an_end()
        parent = await self.bench.job(self.parent.jid)
        others = [await self.bench.job(jid) for jid in self.jids[1:]]
        if self.cancelled:
            assert parent.state is State.CANCELLED
        if parent.state is State.SUCCEEDED:
            assert all(job.state is not State.CANCELLED for job in others), "a cancelled child is no success"
            assert any(job.finalize_of for job in others), "its finalizer has run"


FAMILY_STEPS = (
    "cancel_parent", "decide_parent", "cascade", "carry_out", "start_child", "finish_child", "fail_child",
    "retry_child", "renew_child", "spawn", "bear", "finish_parent", "fail_parent", "cancel_child",
)  # fmt: skip
OTHER_POLICIES = (
    "cancel_parent", "cascade", "start_child", "finish_child", "fail_child", "bear", "finish_parent", "cancel_child",
)  # fmt: skip
FAMILY_FEW = ("cancel_parent", "cascade", "finish_child", "retry_child", "bear", "finish_parent", "renew_child")


async def _race_family(bench: Bench, order: Sequence[str], policy: str) -> None:
    race = FamilyRace(bench, policy)
    await race.open()
    for name in order:
        await getattr(race, name)()
        await race.look()
    await race.end()


@pytest.mark.parametrize("begin", [(), ("start_child",)], ids=["queued", "started"])
@pytest.mark.parametrize("policy", ["cancel", "wait", "abandon"])
async def test_a_cancel_comes_down_in_every_order_of_three_steps(
    redis_url: str, policy: str, begin: tuple[str, ...]
) -> None:
    steps = FAMILY_STEPS if policy == "cancel" else OTHER_POLICIES
    tries = orders(steps, 3 - len(begin), begin, ["cancel_parent", "decide_parent"])
    await try_all(redis_url, tries, _race_family, policy=policy)


@pytest.mark.parametrize("second", FAMILY_FEW)
async def test_a_cancel_comes_down_in_every_order_of_four_steps_after_a_start(redis_url: str, second: str) -> None:
    tries = orders(FAMILY_FEW, 3, ("start_child", second), ["cancel_parent"])
    await try_all(redis_url, tries, _race_family, policy="cancel")
