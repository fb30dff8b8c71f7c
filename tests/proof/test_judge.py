"""
The judge of runs: small histories written by hand, each broken in one way, and each check rejects its own.

What is sound is accepted: a judge that finds fault with everything would prove nothing.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof.story import NOW, PREFIX, Story

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from judge import schema  # noqa: E402
from judge.run import judge_run  # noqa: E402
from judge.verdict import NAMES, Unusable, Verdict  # noqa: E402

Tell = Callable[[Story], object]


def judged(tmp_path: Path, tell: Tell) -> Verdict:
    story = Story(tmp_path)
    story.beat("w1")
    story.beat("w2")
    tell(story)
    return judge_run(story.told_folder())


# Sound histories -----------------------------------------------------------------------------------------


def every_way_to_end(s: Story) -> None:
    s.whole("a")
    s.schedule("b")
    s.promote("b")
    s.run("b")
    s.retry("b")
    s.promote("b")
    s.run("b", "w2")
    s.finish("b", "failed", by="w2")
    s.enqueue("c")
    s.cancel_queued("c")
    s.sweep_out("c")
    s.enqueue("d")
    s.run("d")
    s.signal("d")
    s.confirm("d")


def a_lost_worker(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.pass_ms(20_000)
    s.reclaim("a")
    s.run("a", "w2")
    s.handler("h_start", "a", 1, ms=0)
    s.handler("h_start", "a", 2, ms=20_001, proc="w2:8")
    s.handler("h_end", "a", 1, ms=20_002)  # the first one was only silent
    s.handler("h_end", "a", 2, ms=20_003, proc="w2:8")
    s.finish("a", by="w2")


def a_drain(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.hand_back("a")
    s.run("a", "w2")
    s.handler("h_cancel_seen", "a", 1, ms=5, cause="shutdown")
    s.finish("a", by="w2")


def a_forced_end(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a", grace_ms=1000)
    s.pass_ms(1200)
    s.confirm("a", ended="abandoned", by="d1")


def a_late_success(s: Story) -> None:
    s.enqueue("a", "late", "keep")
    s.run("a")
    s.signal("a")
    dropped = [["ZREM", PREFIX + part, "a"] for part in ("cancelled", "deadlines")]
    s.say(*dropped, s.ending("a", "succeeded"), *s.close("a", "succeeded"), *s.drop_entry("a"))


def a_record_that_expires(s: Story) -> None:
    s.whole("a")
    s.expire("a")
    s.whole("a")


def a_tombstone(s: Story) -> None:
    s.say(
        ["HSET", PREFIX + "tombstones", "a", "user"],
        ["ZADD", PREFIX + "cancelled", s.now + 60_000, "a"],
    )
    s.say(
        ["HDEL", PREFIX + "tombstones", "a"],
        ["ZREM", PREFIX + "cancelled", "a"],
        [
            *s.admission("a", "cancelled", "requested", s.now, "cause", "user"),
            *s.ending("a", "cancelled", "ended", "before_start", by="p")[2:],
        ],
        *s.close("a", "cancelled"),
    )


def clients_and_their_answers(s: Story) -> None:
    s.whole("a")
    s.enqueue("b")
    s.run("b")
    s.signal("b")
    s.confirm("b")
    s.call("enqueue", "a", "enqueued", ms=0)
    s.call("enqueue", "b", "enqueued", ms=1)
    s.call("enqueue", "c", "", ms=2, kind="info")  # nobody knows, and it is not there
    s.call("read", "a", "running", ms=3, proc="r:1")
    s.call("read", "a", "succeeded", ms=5, proc="r:1")
    s.call("cancel", "b", "signalled", ms=8)
    s.handler("h_cancel_seen", "b", 1, ms=10, cause="user")
    s.call("read", "b", "cancelled", ms=12, proc="r:1")
    s.call("cancel", "a", "already_finished", ms=14)


def somebody_elses_entries(s: Story) -> None:
    s.enqueue("a")
    s.say(["XADD", PREFIX + "queue:q", f"{NOW}-900", "jid", "a", "kind", "lie"])
    s.say(["XADD", PREFIX + "queue:q", f"{NOW}-901", "poison", b"\xff"])
    s.say(["SET", "another:key", "1"])
    s.say(["XDEL", PREFIX + "queue:q", f"{NOW}-900", f"{NOW}-901"])
    s.run("a")
    s.finish("a")


def signs_of_life_of_what_was_given_up_or_stopped_a_moment_ago(s: Story) -> None:
    s.tell("fault", "info", ms=0, role="nemesis", val={"fault": "clock_of_server", "target": "server", "seconds": 3600})
    s.pass_ms(3_600_000)
    for jid, ended in (("a", "killed"), ("b", "abandoned")):
        s.enqueue(jid)
        s.run(jid)
        s.signal(jid)
        s.pass_ms(1000)
        s.confirm(jid, ended=ended)
        s.handler("h_start", jid, 1, ms=1, proc="child:99")
    s.handler("h_tick", "a", 1, ms=1900, proc="child:99")
    s.handler("h_tick", "b", 1, ms=9000, proc="child:99")
    back = {"fault": "clock_of_server", "target": "server", "seconds": -3600}
    s.tell("fault", "info", ms=20_000, role="nemesis", val=back)
    s.pass_ms(-3_600_000 + 18_100)  # 20.1 s after the beginning
    s.beat("w1")
    s.enqueue("c")
    s.run("c")
    s.signal("c")
    s.confirm("c", ended="killed")
    s.handler("h_start", "c", 1, ms=1, proc="child:99")
    s.handler("h_tick", "c", 1, ms=19_000, proc="child:99")  # before the step, and so before its end


def a_standing_rule_that_was_over_before_the_clock_was_set_back(s: Story) -> None:
    rule(s, IN_G, 0, s.now + 60_000)
    s.pass_ms(60_000)
    settle(s)
    s.pass_ms(-30_000)
    s.beat("w1")
    s.enqueue("a", "group", "g")
    s.run("a")
    s.finish("a")


def a_deadline_that_was_brought_near_when_the_clock_was_set_back(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a", grace_ms=1000)
    s.pass_ms(-3_600_000)
    s.beat("w1")
    deadline = s.now + 1000
    s.say(s.write("a", "hastened", "deadline", deadline, by="d1"), ["ZADD", PREFIX + "deadlines", deadline, "a"])
    s.pass_ms(1000)
    s.confirm("a", ended="abandoned", by="d1")


@pytest.mark.parametrize(
    "tell",
    [
        every_way_to_end, a_lost_worker, a_drain, a_forced_end, a_late_success, a_record_that_expires, a_tombstone,
        clients_and_their_answers, somebody_elses_entries,
        signs_of_life_of_what_was_given_up_or_stopped_a_moment_ago,
        a_standing_rule_that_was_over_before_the_clock_was_set_back,
        a_deadline_that_was_brought_near_when_the_clock_was_set_back,
    ],
)  # fmt: skip
def test_a_sound_history_is_valid(tmp_path: Path, tell: Tell) -> None:
    verdict = judged(tmp_path, tell)
    assert verdict.violations == []
    assert (verdict.void, verdict.exit_code) == ([], 0)


# Broken ones ---------------------------------------------------------------------------------------------

BROKEN: list[tuple[str, str, Tell]] = []


def broken(checks: str, what: str) -> Callable[[Tell], Tell]:
    def add(tell: Tell) -> Tell:
        BROKEN.append((checks, what, tell))
        return tell

    return add


@broken("C1", "a job that is accepted and never in the log")
def _(s: Story) -> None:
    s.whole("a")
    s.call("enqueue", "a", "enqueued", ms=0)
    s.call("enqueue", "b", "enqueued", ms=1)


@broken("C1", "a live record that is removed")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(["XACK", PREFIX + "queue:q", "busq", s.jobs["a"]["entry"]], *s.drop_entry("a"), ["DEL", PREFIX + "job:a"])


@broken("C1 C15", "a job that is retried and never again")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.retry("a")


@broken("C2", "a job that nobody enqueued")
def _(s: Story) -> None:
    s.whole("a")
    s.whole("b")
    s.call("enqueue", "a", "enqueued", ms=0)


@broken("C2", "a refused enqueue that is there")
def _(s: Story) -> None:
    s.whole("a")
    s.call("enqueue", "a", "in_use", ms=0, kind="fail")


@broken("C4", "an enqueue that was sent again and made a second entry")
def _(s: Story) -> None:
    s.enqueue("a")
    s.say(s.add_entry("a"), ["HINCRBY", PREFIX + "counters", "enqueued", 1])
    s.jobs["a"]["entry"] = f"{NOW}-1"
    s.say(["XDEL", PREFIX + "queue:q", f"{NOW}-2"])
    s.run("a")
    s.finish("a")


@broken("C4", "an enqueue that was sent again and admitted the job anew")
def _(s: Story) -> None:
    s.enqueue("a")
    s.deliver("a")
    first = s.drop_entry("a")
    s.enqueue("a")
    s.say(*first)
    s.run("a")
    s.finish("a")


@broken("C5", "a second ending")
def _(s: Story) -> None:
    s.whole("a")
    s.say(s.ending("a", "failed", by="d1"), *s.close("a", "failed"))


@broken("C5", "a result written after the end")
def _(s: Story) -> None:
    s.whole("a")
    s.say(s.write("a", "late_result", "result", b"\x02"))


@broken("C5", "a record that is removed before its time")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["PERSIST", PREFIX + "job:a"], ["DEL", PREFIX + "job:a"])


@broken("C6", "a job that succeeds without having run")
def _(s: Story) -> None:
    s.enqueue("a")
    s.deliver("a")
    s.finish("a", by="d1")


@broken("C6", "a move without a line of history")
def _(s: Story) -> None:
    s.enqueue("a")
    s.deliver("a")
    begin = s.begin("a")
    s.say([*begin[:-4]], ["HINCRBY", PREFIX + "counters", "started", 1])
    s.finish("a")


@broken("C6", "a record that comes back after its expiry")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["DEL", PREFIX + "job:a"])
    fields = ["state", "cancelled", "requested", 1, "ended", "killed", "e1", "finalized\t1\t0\t\t", "n", 1]
    s.say(["HSET", PREFIX + "job:a", *fields], *s.close("a", "cancelled"))


@broken("C7", "an entry that is acknowledged before its job is finished")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(*s.drop_entry("a"))
    s.finish("a")


@broken("C7", "an entry that is acknowledged and not removed, so that it is nowhere")
def _(s: Story) -> None:
    s.enqueue("a")
    s.deliver("a")
    s.say(["XACK", PREFIX + "queue:q", "busq", s.jobs["a"]["entry"]])
    s.deliver("a")
    s.start("a")
    s.finish("a")


@broken("C7", "a start by somebody who does not hold the entry")
def _(s: Story) -> None:
    s.enqueue("a")
    s.deliver("a", "w2")
    s.start("a", "w1")
    s.deliver("a", "w1")
    s.finish("a")


@broken("C7", "an ended job that keeps its entry")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(s.ending("a", "succeeded"), *s.close("a", "succeeded"))
    s.say(*s.drop_entry("a"))


@broken("C7", "a record that is to stay for ever")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(s.ending("a", "succeeded"), *s.drop_entry("a"))


@broken("C7", "a consumer that is deleted with what it held")
def _(s: Story) -> None:
    s.enqueue("a")
    s.deliver("a")
    s.say(["XGROUP", "DELCONSUMER", PREFIX + "queue:q", "busq", "w1"])
    s.deliver("a")
    s.start("a")
    s.finish("a")


@broken("C7", "a scheduled job that also has an entry")
def _(s: Story) -> None:
    s.schedule("a")
    entry = s.add_entry("a")
    s.say(entry, s.write("a", "promoted", "entry", entry[2]))
    s.say(s.write("a", "promoted", "state", "queued"), ["ZREM", PREFIX + "scheduled", "a"])
    s.run("a")
    s.finish("a")


@broken("C8", "an attempt number that comes twice")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.hand_back("a")
    s.deliver("a")
    s.say(s.begin("a", attempt=1, token="w1/other"), ["HINCRBY", PREFIX + "counters", "started", 1])
    s.finish("a")


@broken("C8", "a token that comes twice")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.hand_back("a")
    s.deliver("a")
    s.say(s.begin("a", token="w1/a/1"), ["HINCRBY", PREFIX + "counters", "started", 1])
    s.say(s.ending("a", "succeeded", token="w1/a/1"), *s.close("a", "succeeded"), *s.drop_entry("a"))


@broken("C8", "a stale attempt that finishes the job of the one after it")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.pass_ms(20_000)
    s.reclaim("a")
    s.beat("w2")
    s.run("a", "w2")
    s.finish("a", by="w1", token="w1/a/1", attempt=1)


@broken("C8", "an attempt that settles twice")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(s.write("a", "progress", "fin", s.jobs["a"]["token"]), ["HINCRBY", PREFIX + "counters", "x", 1])
    s.finish("a")


@broken("C8", "one attempt that runs in two places")
def _(s: Story) -> None:
    s.whole("a")
    s.handler("h_start", "a", 1, ms=1, nonce="one")
    s.handler("h_start", "a", 1, ms=2, nonce="two", proc="w2:8")


@broken("C6 C9", "an accepted cancel that ends in success")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    dropped = [["ZREM", PREFIX + part, "a"] for part in ("cancelled", "deadlines")]
    s.say(*dropped, s.ending("a", "failed"), *s.close("a", "failed"), *s.drop_entry("a"))


@broken("C9", "a handler that keeps a late success although nobody allowed it")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    dropped = [["ZREM", PREFIX + part, "a"] for part in ("cancelled", "deadlines")]
    s.say(*dropped, s.ending("a", "succeeded"), *s.close("a", "succeeded"), *s.drop_entry("a"))


@broken("C5 C9", "a start after a cancel was accepted")
def _(s: Story) -> None:
    s.enqueue("a")
    s.cancel_queued("a")
    s.deliver("a")
    s.say(["ZREM", PREFIX + "cancelled", "a"], s.begin("a"), ["HINCRBY", PREFIX + "counters", "started", 1])
    s.finish("a")


@broken("C9 C6", "a job that is retried after its cancel was accepted")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    dropped = [["ZREM", PREFIX + part, "a"] for part in ("cancelled", "deadlines")]
    own = ["fin", s.jobs["a"]["token"], "state", "scheduled"]
    s.say(*dropped, *s.drop_entry("a"), s.write("a", "retried", *own), ["ZADD", PREFIX + "scheduled", s.now, "a"])
    ending = s.ending("a", "cancelled", "ended", "completed", by="d1")
    s.say(["ZREM", PREFIX + "scheduled", "a"], ending, *s.close("a", "cancelled"))


@broken("C9", "a cancelling job that is not in the cancelled set")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(
        s.request("a", "state", "cancelling", "deadline", s.now + 1000),
        ["ZADD", PREFIX + "deadlines", s.now + 1000, "a"],
    )
    s.confirm("a")


@broken("C9", "a cancelling job that no watchdog would find")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.say(s.request("a", "state", "cancelling", "deadline", s.now), ["ZADD", PREFIX + "cancelled", "+inf", "a"])
    s.confirm("a")


@broken("C9", "a cancel that was answered and never written down")
def _(s: Story) -> None:
    s.whole("a")
    s.call("enqueue", "a", "enqueued", ms=0)
    s.call("cancel", "a", "signalled", ms=1)


@broken("C9", "a cancel that was told that its job had finished, which it had not")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.confirm("a")
    s.call("cancel", "a", "already_finished", ms=1)


@broken("C9", "a cancel that was told that there is no such job, after its enqueue was accepted")
def _(s: Story) -> None:
    s.call("enqueue", "a", "enqueued", ms=0)
    s.call("cancel", "a", "not_found", ms=5)
    s.whole("a")


@broken("C12", "a job that a user cancelled, and no client did")
def _(s: Story) -> None:
    for jid in ("a", "b"):
        s.call("enqueue", jid, "enqueued", ms=0)
        s.enqueue(jid)
        s.run(jid)
        s.signal(jid)
        s.confirm(jid)
    s.call("cancel", "b", "signalled", ms=5)


@broken("C9", "a deadline that is put off")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    later = s.now + 500_000
    s.say(["HSET", PREFIX + "job:a", "deadline", later], ["ZADD", PREFIX + "deadlines", later, "a"])
    s.confirm("a")


@broken("C14", "an attempt that is said never to have run, and it ran")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.handler("h_start", "a", 1, ms=1)
    s.signal("a")
    s.confirm("a", ended="before_start")


@broken("C5", "a result that is removed after the end")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["HDEL", PREFIX + "job:a", "result"])


@broken("C9", "a second cancel that takes the place of the first")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.say(s.request("a"), ["ZADD", PREFIX + "cancelled", "+inf", "a"])
    s.confirm("a")


@broken("C9", "a tombstone that nobody minds")
def _(s: Story) -> None:
    s.say(["HSET", PREFIX + "tombstones", "a", "user"], ["ZADD", PREFIX + "cancelled", s.now + 60_000, "a"])
    s.enqueue("a")
    s.run("a")
    s.say(["ZREM", PREFIX + "cancelled", "a"])
    s.finish("a")


@broken("C9", "a child that starts below a cancelled parent")
def _(s: Story) -> None:
    s.enqueue("a")
    s.enqueue("b", "parent", "a")
    s.run("a")
    s.signal("a")
    s.confirm("a")
    s.run("b")
    s.finish("b")


def rule(s: Story, condition: object, cutoff: int, until: int = 0, *, version: int = 1) -> None:
    told = f"{cutoff} {s.now} {until} {version} {json.dumps(condition)}\n{json.dumps({'id': 's-1'})}"
    s.say(
        ["HSET", PREFIX + "scope:s-1", "number", 1, "state", "settling"],
        ["HSET", PREFIX + "rules", 1, told, "newest", 1],
    )


def settle(s: Story) -> None:
    s.say(
        ["HDEL", PREFIX + "rules", 1, "newest"],
        ["HSET", PREFIX + "scope:s-1", "state", "settled", "ended", s.now],
        ["PEXPIREAT", PREFIX + "scope:s-1", s.now + 60_000],
    )


IN_G = ["and", ["==", {"f": "group"}, {"v": "g"}]]


@broken("C9", "a job that starts after a wide cancel that covers it")
def _(s: Story) -> None:
    s.enqueue("a", "group", "g")
    rule(s, IN_G, 1)
    settle(s)
    s.run("a")
    s.finish("a")


@broken("C9", "a job that starts although a standing rule was there first")
def _(s: Story) -> None:
    rule(s, IN_G, 0, s.now + 60_000)
    s.enqueue("a", "group", "g")
    s.run("a")
    s.finish("a")
    settle(s)


@broken("C9", "a job that starts although a standing rule was there first, which had left before its time")
def _(s: Story) -> None:
    rule(s, IN_G, 0, s.now + 60_000)
    s.pass_ms(59_000)
    settle(s)
    s.pass_ms(-30_000)
    s.enqueue("a", "group", "g")
    s.run("a")
    s.finish("a")


@broken("C10", "a handler that waits and hears its cancel late")
def _(s: Story) -> None:
    s.told["hears"] = {"kinds": ["k"], "within_s": 1.0}
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.confirm("a")
    s.call("cancel", "a", "signalled", ms=0)
    s.handler("h_cancel_seen", "a", 1, ms=1500, cause="user")


@broken("C10", "a handler that waits and never hears its cancel")
def _(s: Story) -> None:
    s.told["hears"] = {"kinds": ["k"], "within_s": 1.0}
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.confirm("a", ended="completed")
    s.call("cancel", "a", "signalled", ms=0)


@broken("C11", "a cancel that is finalized long after its deadline")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a", grace_ms=1000)
    s.pass_ms(2200)
    s.confirm("a", ended="abandoned", by="d1")


@broken("C12", "a job that is cancelled, and nobody wanted it")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.confirm("a")


@broken("C12", "a handler that sees a cancel which is nowhere")
def _(s: Story) -> None:
    s.whole("a")
    s.handler("h_cancel_seen", "a", 1, ms=1, cause="user")


@broken("C13", "an attempt that is reclaimed under a good lease")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.reclaim("a")
    s.run("a", "w2")
    s.finish("a", by="w2")


@broken("C13", "a cancel that a watchdog finalizes before its deadline, under a good lease")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a", grace_ms=1000)
    s.confirm("a", ended="abandoned", by="d1")


@broken("C13", "an attempt that begins while the one that was handed back runs on")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.hand_back("a")
    s.run("a", "w2")
    s.finish("a", by="w2")
    for ev, fence, ms in (("h_start", 1, 0), ("h_start", 2, 5), ("h_end", 1, 9), ("h_end", 2, 10)):
        s.handler(ev, "a", fence, ms=ms)


@broken("C14", "an effect of a process that was killed two seconds ago")
def _(s: Story) -> None:
    s.whole("a")
    s.tell("fault", "info", ms=0, role="nemesis", val={"fault": "kill_worker", "target": "w1:7"})
    s.handler("h_start", "a", 1, ms=-5)
    s.handler("h_effect", "a", 1, ms=2000)


@broken("C14", "a tick of a child whose worker was killed")
def _(s: Story) -> None:
    s.whole("a")
    s.tell("fault", "info", ms=0, role="nemesis", val={"fault": "kill_worker", "target": "w1", "pid": 7})
    s.handler("h_start", "a", 1, ms=-5, proc="child:99", ppid=7)
    s.handler("h_tick", "a", 1, ms=2000, proc="child:99")


@broken("C14", "a tick of an attempt whose process was said to be ended")
def _(s: Story) -> None:
    s.tell("fault", "info", ms=0, role="nemesis", val={"fault": "kill_child", "target": "w1:8"})
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.pass_ms(1000)
    s.confirm("a", ended="killed")
    s.handler("h_start", "a", 1, ms=1, proc="child:99")
    s.handler("h_tick", "a", 1, ms=2100, proc="child:99")


@broken("C15", "a key that no table names")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["HSET", PREFIX + "surprise", "a", 1])


@broken("C15", "a deadline that is left behind")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["ZADD", PREFIX + "timers", s.now, "a"])


@broken("C15", "an entry that is pending for ever")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["XADD", PREFIX + "queue:q", f"{NOW}-900", "poison", "1"])
    s.say(["XCLAIM", PREFIX + "queue:q", "busq", "w1", 0, f"{NOW}-900", "LASTID", f"{NOW}-900"])


@broken("C15", "a mark in the cancelled set that nothing takes away")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["ZADD", PREFIX + "cancelled", "+inf", "b"])


@broken("C15", "a rule that is never settled")
def _(s: Story) -> None:
    s.whole("a")
    rule(s, IN_G, 0)


@broken("C15", "counts of a wide cancel that are kept for ever")
def _(s: Story) -> None:
    s.whole("a")
    s.say(["HSET", PREFIX + "scope:s-1", "state", "settled"])


@broken("C7", "a cancelled job whose clean-up is not admitted with its ending")
def _(s: Story) -> None:
    s.enqueue("a", "on_cancel", "attempted")
    s.run("a")
    s.signal("a")
    s.confirm("a")


@broken("C6", "a parent that succeeds before its children have ended")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.enqueue("b", "parent", "a")
    s.say(["HINCRBY", PREFIX + "job:a", "open", 1])
    s.finish("a")
    s.run("b")
    s.finish("b")


@broken("C9", "a child of a parent that was cancelled before")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.enqueue("b", "parent", "a", "policy", "wait")
    s.confirm("a")
    s.run("b")
    s.finish("b")


@broken("C7", "a timer of a job that has ended")
def _(s: Story) -> None:
    s.enqueue("a")
    s.say(["ZADD", PREFIX + "timers", s.now, "a"])
    s.run("a")
    s.finish("a")
    s.say(["ZREM", PREFIX + "timers", "a"])


@broken("C16", "a reader whose job goes backwards")
def _(s: Story) -> None:
    s.whole("a")
    s.call("read", "a", "running", ms=0)
    s.call("read", "a", "queued", ms=5)


@broken("C17", "a read that does not know of a cancel that was answered before")
def _(s: Story) -> None:
    s.enqueue("a")
    s.run("a")
    s.signal("a")
    s.confirm("a")
    s.call("cancel", "a", "signalled", ms=0)
    s.call("read", "a", "running", ms=5, proc="r:1")


@broken("C17", "a read that does not know of an ending that somebody else has read")
def _(s: Story) -> None:
    s.whole("a")
    s.call("read", "a", "succeeded", ms=0)
    s.call("read", "a", "running", ms=5, proc="r:1")


@pytest.mark.parametrize(("checks", "what", "tell"), BROKEN, ids=[what for _, what, _ in BROKEN])
def test_a_broken_history_is_rejected_by_its_own_check(tmp_path: Path, checks: str, what: str, tell: Tell) -> None:
    verdict = judged(tmp_path, tell)
    assert set(verdict.counts) == set(checks.split()), verdict.violations
    assert verdict.exit_code == 1
    assert all(each.jid or each.check == "C15" for each in verdict.violations)


def test_every_check_that_can_be_violated_is_seen_to_reject_something() -> None:
    assert {check for checks, _, _ in BROKEN for check in checks.split()} == set(NAMES)


# What cannot be judged -----------------------------------------------------------------------------------


def test_a_run_without_jobs_is_void(tmp_path: Path) -> None:
    assert judged(tmp_path, lambda s: None).exit_code == 2


def test_a_run_that_does_not_show_what_it_was_made_for_is_void(tmp_path: Path) -> None:
    def tell(s: Story) -> None:
        s.whole("a")
        s.told |= {"expect_faults": {"kill_worker": 1}, "expect_moves": ["waiting -> succeeded"]}

    assert len(judged(tmp_path, tell).void) == 2


def test_a_command_that_the_judge_does_not_know_makes_the_run_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="RENAME"):
        judged(tmp_path, lambda s: s.say(["RENAME", PREFIX + "job:a", "b"]))


def test_bytes_that_are_no_log_make_the_run_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="no command begins here"):
        judged(tmp_path, lambda s: s.raw(b"hello"))


def test_half_a_write_at_the_end_is_cut_off_and_said(tmp_path: Path) -> None:
    def tell(s: Story) -> None:
        s.whole("a")
        s.raw(b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nDEL\r\n$12\r\nbusq:{0}")

    verdict = judged(tmp_path, tell)
    assert verdict.exit_code == 0
    assert "cut off" in " ".join(verdict.remarks)


def test_a_model_that_is_not_what_the_server_says_makes_the_run_void(tmp_path: Path) -> None:
    def tell(s: Story) -> None:
        s.whole("a")
        s.told["dump"] = "final.json"
        (tmp_path / "final.json").write_text(json.dumps({"keys": {"busq:{0}:job:b": {"ttl": 1}}}))

    verdict = judged(tmp_path, tell)
    assert (verdict.exit_code, len(verdict.void)) == (2, 1)


def test_half_a_line_of_history_is_left_out_and_a_bad_one_is_not(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.whole("a")
    folder = story.told_folder()
    path = folder / "history" / "killed.jsonl"
    path.write_text('{"v": 1, "run"')
    assert judge_run(folder).figures["torn_lines"] == 1
    path.write_text('{"v": 1, "run"\n')
    with pytest.raises(Unusable, match=r"killed\.jsonl:1"):
        judge_run(folder)


def test_a_server_that_was_emptied_begins_another_epoch(tmp_path: Path) -> None:
    def tell(s: Story) -> None:
        s.enqueue("a")
        s.run("a")
        s.say(["FLUSHALL"])
        s.jobs.clear()
        s.say(["XGROUP", "CREATE", PREFIX + "queue:q", "busq", "0", "MKSTREAM"])
        s.whole("b")
        s.call("enqueue", "a", "enqueued", ms=0)
        s.call("enqueue", "b", "enqueued", ms=1)

    verdict = judged(tmp_path, tell)
    assert (verdict.exit_code, verdict.figures["epochs"]) == (0, [2])


def test_a_bound_of_time_is_not_asked_for_while_the_server_was_away(tmp_path: Path) -> None:
    def tell(s: Story) -> None:
        s.enqueue("a")
        s.run("a")
        s.signal("a", grace_ms=1000)
        s.tell("fault", "info", ms=500, role="nemesis", op="f1", val={"fault": "stop_server", "target": "server"})
        s.tell("heal", "info", ms=2500, role="nemesis", op="f1", val={"fault": "stop_server", "target": "server"})
        s.pass_ms(3000)
        s.confirm("a", ended="abandoned", by="d1")

    verdict = judged(tmp_path, tell)
    assert (verdict.exit_code, verdict.figures["faults"]) == (0, {"stop_server": 1})


def late_beside(tmp_path: Path, fault: str, target: str, **val: object) -> Verdict:
    """A job on server0 ends two seconds after its deadline, and this fault of `target` lies in between."""
    late, other = Story(tmp_path, "server0"), Story(tmp_path, "server1")
    late.beat("w1")
    late.enqueue("a")
    late.run("a")
    late.signal("a", grace_ms=1000)
    for ev, ms in (("fault", 500), ("heal", 2500)):
        late.tell(ev, "info", ms=ms, role="nemesis", op="f1", val={"fault": fault, "target": target, **val})
    late.pass_ms(3000)
    late.confirm("a", ended="abandoned", by="d1")
    other.whole("b")
    other.told_folder()
    return judge_run(late.told_folder())


def test_a_server_that_was_away_excuses_its_own_jobs_and_no_others(tmp_path: Path) -> None:
    assert late_beside(tmp_path / "own", "stop_server", "server0").exit_code == 0
    assert late_beside(tmp_path / "all", "stop_watchdog", "d0:17").exit_code == 0
    verdict = late_beside(tmp_path / "other", "stop_server", "server1")
    assert dict(verdict.counts) == {"C11": 1}
    assert verdict.violations[0].place.startswith("server0/"), "and it says where that stands"


def test_outages_are_laid_beside_a_job_by_the_clock_of_its_own_server(tmp_path: Path) -> None:
    """Two seconds of outage excuse a job of a server whose clock was right, and are an hour away for another."""

    def tell(s: Story, whose: str) -> None:
        step = {"fault": "clock_of_server", "target": whose, "seconds": 3600}
        s.tell("fault", "info", ms=-9e6, role="nemesis", op="c", val=step)
        s.tell("heal", "info", ms=-9e6, role="nemesis", op="c", val=step)

    codes = []
    for whose in ("server0", "server1"):
        late, other = Story(tmp_path / whose, "server0"), Story(tmp_path / whose, "server1")
        late.enqueue("a")
        late.run("a")
        late.signal("a", grace_ms=1000)
        tell(late, whose)
        for ev, ms in (("fault", 500), ("heal", 2500)):
            late.tell(ev, "info", ms=ms, role="nemesis", op="f1", val={"fault": "proxy_half_open", "target": "9 links"})
        late.pass_ms(3000)
        late.confirm("a", ended="abandoned", by="d1")
        other.whole("b")
        other.told_folder()
        codes.append(judge_run(late.told_folder()).exit_code)
    assert codes == [1, 0]


def test_a_cancel_during_which_the_clock_was_set_back_is_not_asked_for_its_bound(tmp_path: Path) -> None:
    """Redis writes no stamp below its last one; the leases that workers renew tell it."""

    def tell(s: Story, *, back_ms: int) -> None:
        s.enqueue("a")
        s.run("a")
        s.signal("a", grace_ms=1000)
        s.pass_ms(-back_ms)
        s.beat("w1")
        s.pass_ms(back_ms + 3000)
        s.beat("w1")
        s.confirm("a", ended="abandoned", by="d1")

    hours = judged(tmp_path / "hours", lambda s: tell(s, back_ms=7_200_000))
    assert (hours.exit_code, hours.figures["bounds"][0]["judged"]) == (0, 0)
    assert judged(tmp_path / "seconds", lambda s: tell(s, back_ms=2000)).counts["C11"] == 1


@pytest.mark.parametrize("stored", ["", "of a stranger", None])
def test_a_rule_that_the_judge_cannot_read_is_counted_and_nobody_is_accused(tmp_path: Path, stored: str | None) -> None:
    def tell(s: Story) -> None:
        s.enqueue("a", "group", "g")
        rule(s, IN_G, 1, version=2)
        if stored is not None:
            s.say(["HSET", PREFIX + "rules", 1, stored])
        settle(s)
        s.run("a")
        s.finish("a")

    verdict = judged(tmp_path, tell)
    assert (verdict.exit_code, verdict.figures["rules_not_judged"]) == (0, 1)


def test_latencies_are_told_by_the_faults_that_were_on(tmp_path: Path) -> None:
    def tell(s: Story) -> None:
        for jid, at in (("a", 0), ("b", 10_000)):
            s.enqueue(jid)
            s.run(jid)
            s.signal(jid)
            s.confirm(jid)
            s.call("cancel", jid, "signalled", ms=at)
            s.handler("h_cancel_seen", jid, 1, ms=at + 3, cause="user")
        s.tell("fault", "info", ms=9000, role="nemesis", op="f1", val={"fault": "kill_pubsub"})

    latency = judged(tmp_path, tell).figures["cancel_latency_ms"]
    assert {name: told["n"] for name, told in latency.items()} == {"none": 1, "kill_pubsub": 1}
    assert latency["none"]["p50"] == 2.0


# The command ---------------------------------------------------------------------------------------------


def test_the_command_says_which_job_which_place_and_what(tmp_path: Path) -> None:
    story = Story(tmp_path / "good")
    story.whole("a")
    good = story.told_folder()
    story = Story(tmp_path / "bad")
    story.whole("a")
    story.say(story.ending("a", "failed", by="d1"), *story.close("a", "failed"))
    bad = story.told_folder()

    def judge(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPTS / "check_history.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert judge(good).returncode == 0
    told = judge(bad)
    assert told.returncode == 1
    assert "C5 writes after the end: 1" in told.stdout
    assert "a  succeeded already, and" in told.stdout
    assert "[server/a.aof.1.incr.aof:" in told.stdout
    documents = [json.loads(line) for line in judge("--json", good, bad).stdout.splitlines()]
    assert [each["verdict"] for each in documents] == ["valid", "violations"]
    assert documents[1]["violations"][0]["check"] == "C5"
    assert judge(tmp_path / "nowhere").returncode == 2
    (bad / "run.json").write_text('{"settings": 7}')
    told = judge(bad)
    assert (told.returncode, "Traceback" in told.stderr) == (2, True), "a mistake of its own is no violation"


def test_the_judge_knows_every_key_that_the_readme_names() -> None:
    """A new key is to be told to the judge too, by somebody who thinks about what is left of it in the end."""
    table = (SCRIPTS.parent / "README.md").read_text().partition("<!-- keys:")[2].partition("<!-- /keys -->")[0]
    named = re.findall(r"^\| `(?:\{s\}:)?(\w+)", table, re.MULTILINE)
    assert len(named) > 20
    assert set(named) <= {*schema.ALONE, *schema.WITH_NAME, *schema.OF_THE_BUS}


def test_the_judge_imports_nothing_of_busq() -> None:
    """Nor of the tests, nor anything that is not Python's own: who judges shares nothing with whom it judges."""
    for path in [SCRIPTS / "check_history.py", *(SCRIPTS / "judge").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {"judge", *sys.stdlib_module_names}, f"{path}: {name}"
