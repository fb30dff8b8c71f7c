"""
Every guard in the scripts is needed: taken out, at least one test fails.

A guard is taken out of the source that the loader hands over; then a test that keeps it is run, and must fail.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import pytest

from busq.errors import BadRecord, TooManyRules
from busq.protocol.cancel import Cause, Ended
from busq.protocol.states import State, Verb
from busq.store import scripts
from tests.store import test_attempts as attempts
from tests.store import test_bounds as bounds
from tests.store import test_cancels as cancels
from tests.store import test_hooks as hooks
from tests.store import test_limits as limits
from tests.store import test_listing as listing
from tests.store import test_moments as moments
from tests.store import test_newer_rules as newer
from tests.store import test_no_records as no_records
from tests.store import test_rules as rules
from tests.store import test_set_back as set_back
from tests.store import test_settling as settling
from tests.store import test_supersede as supersede
from tests.store import test_transitions as transitions
from tests.store import test_trees as trees

S, V = State, Verb
WAITS_S = 2.0  # of a keeper that would wait for ever; with its guard it takes a twentieth of that
Keeper = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Guard:
    """`old` stands in the source of `script`; with `new` in its place, `keeper` fails."""

    script: str
    old: str
    new: str
    keeper: Keeper

    def __str__(self) -> str:
        return f"{self.script}: {' '.join(self.old.split())[:60]}"


def sabotaged(script: scripts.Script, old: str, new: str) -> scripts.Script:
    """The script with a part of it replaced; it must stand there once."""
    assert script.source.count(old) == 1, f"{script.name} has {old!r} {script.source.count(old)} times"
    source = script.source.replace(old, new)
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return msgspec.structs.replace(script, source=source, sha=sha)


def table(verb: Verb, state: State | None) -> Keeper:
    return lambda url: transitions.test_a_script_answers_all_that_the_table_lists_and_nothing_else(url, verb, state)


def again(what: str) -> Keeper:
    return lambda url: attempts.test_a_call_that_is_sent_again_is_answered_alike_and_writes_nothing(url, what)


def first_writer(first: str, late: Verb) -> Keeper:
    return lambda url: attempts.test_the_first_terminal_writer_wins_and_a_later_one_leaves_one_line(url, first, late)


def whatever(verb: Verb, observed: bool = False) -> Keeper:
    return lambda url: cancels.test_whatever_a_handler_does_after_an_accepted_cancel_it_is_cancelled(
        url, verb, observed
    )


def unread(who: str, expired: bool) -> Keeper:
    return lambda url: cancels.test_the_entry_of_a_cancelled_job_goes_when_it_is_read(url, who, expired)


def former(who: str) -> Keeper:
    return lambda url: cancels.test_an_entry_of_former_times_is_not_taken_for_the_unread_one_of_a_cancelled_job(
        url, who
    )


def as_of_its_decision(state: State) -> Keeper:
    return lambda url: trees.test_a_cause_from_above_stands_as_of_its_decision_however_late_that_is_carried_out(
        url, state
    )


def second_to_end(verb: Verb) -> Keeper:
    return lambda url: trees.test_the_worker_of_a_parked_parent_that_a_watchdog_has_taken_over_is_told_so(url, verb)


def good_lease(state: State) -> Keeper:
    return lambda url: attempts.test_a_good_lease_keeps_everything_as_it_is(url, state)


def left(what: str) -> Keeper:
    return lambda url: cancels.test_there_is_no_late_success_where_something_was_left_to_stop(url, what)


def failures(retries: int) -> Keeper:
    return lambda url: attempts.test_a_job_fails_after_as_many_failures_as_it_has_retries_and_one(url, retries)


def orphan(how: str) -> Keeper:
    return lambda url: attempts.test_an_attempt_that_is_over_or_was_asked_to_stop_gains_no_children(url, how)


def expiry(state: State) -> Keeper:
    return lambda url: bounds.test_live_records_have_no_expiry_and_terminal_ones_have(url, state)


def longer_grace(url: str) -> Awaitable[None]:
    return cancels.test_a_longer_grace_never_moves_the_deadline(url, 50.0)


def gone(who: str, known: bool) -> Keeper:
    ended = Ended.KILLED if known else Ended.ABANDONED
    return lambda url: cancels.test_only_an_attempt_whose_process_is_known_to_be_gone_was_killed(url, who, known, ended)


def wrong_job(state: State) -> Keeper:
    return lambda url: cancels.test_a_finalize_that_comes_to_the_wrong_job_only_clears_the_list_of_deadlines(url, state)


def keeps_late(who: str) -> Keeper:
    return lambda url: cancels.test_late_success_keeps_a_normal_return_and_the_request_stays_on_record(url, who)


def timer_goes(how: str) -> Keeper:
    return lambda url: moments.test_the_timer_goes_when_the_job_ends(url, how)


def too_late(url: str) -> Awaitable[None]:
    return moments.test_what_is_past_its_moment_does_not_start_although_no_watchdog_came(
        url, moments.EXPIRES, Cause.EXPIRED
    )


def given_back(cancelled: bool) -> Keeper:
    return lambda url: moments.test_an_attempt_that_never_came_to_run_is_given_back_without_spending_anything(
        url, cancelled
    )


def taken_over(who: str) -> Keeper:
    return lambda url: cancels.test_the_pending_list_names_no_owner_of_an_attempt_that_was_taken_over(url, who)


def admitted(way: str) -> Keeper:
    return lambda url: hooks.test_whoever_makes_a_job_cancelled_admits_its_hook_once(url, way)


def no_hook(way: str) -> Keeper:
    return lambda url: hooks.test_a_kind_without_a_hook_leaves_nothing_to_do(url, way)


def newer_rule(how: str) -> Keeper:
    return lambda url: in_time(newer.test_what_a_newer_rule_may_cover_does_not_start_and_is_left_as_it_is(url, how))


def most(waiting: int) -> Keeper:
    return lambda url: limits.test_a_queue_takes_as_many_as_its_limit_and_refuses_the_rest_of_a_call(
        url, waiting, "by the job"
    )


def at_once(of: str, count: int) -> Keeper:
    return lambda url: limits.test_what_comes_in_a_second_may_come_at_once_and_the_rest_later(url, of, count)


def opted_out(way: str) -> Keeper:
    return lambda url: hooks.test_a_hook_that_opted_out_is_admitted_only_after_an_attempt(url, way)


def said(word: str, declared: str, count: int) -> Keeper:
    return lambda url: hooks.test_what_the_producer_says_of_the_hook_stands_before_what_workers_say(
        url, word, declared, count
    )


def late_hook(occasion: str, count: int) -> Keeper:
    return lambda url: hooks.test_a_hook_that_nobody_knew_of_is_admitted_when_the_entry_comes_to_a_worker_that_does(
        url, occasion, count
    )


def unread_hook(by: str, occasion: str, count: int) -> Keeper:
    return lambda url: hooks.test_a_hook_that_nobody_knew_of_is_not_lost_with_an_entry_that_never_came_to_a_start(
        url, by, occasion, count
    )


def decided(known: str) -> Keeper:
    return lambda url: hooks.test_a_hook_is_not_admitted_late_where_it_had_been_decided(url, known)


def told(words: str) -> Keeper:
    return lambda url: hooks.test_how_a_hook_ends_is_told_in_the_history_of_its_job_and_changes_nothing_else(url, words)


def untold(reused: bool) -> Keeper:
    return lambda url: hooks.test_nothing_is_told_of_a_hook_whose_job_has_no_record_any_more(url, reused)


def hook_cancelled(running: bool) -> Keeper:
    return lambda url: hooks.test_a_hook_may_be_cancelled_by_its_jid_and_has_no_hook_itself(url, running)


def touched(way: str) -> Keeper:
    return lambda url: rules.test_whoever_touches_a_job_carries_out_first_what_has_been_decided(url, way)


def entry_goes(way: str) -> Keeper:
    return lambda url: rules.test_an_entry_that_goes_with_its_job_leaves_nothing_behind(url, way)


def walked(step: int) -> Keeper:
    return lambda url: rules.test_a_walk_comes_by_every_job_in_bounded_steps(url, step)


def never_covered(state: State) -> Keeper:
    return lambda url: rules.test_clean_ups_are_never_covered(url, state)


def said_done(last: str) -> Keeper:
    return lambda url: rules.test_a_word_on_the_done_channel_says_that_a_scope_may_be_done(url, last)


def shown(state: State) -> Keeper:
    return lambda url: rules.test_a_look_shows_what_has_been_decided_before_the_record_does(url, state)


def crowded(url: str) -> Awaitable[None]:
    return in_time(_with_patch(lambda patch: rules.test_there_are_only_so_many_live_rules(url, patch)))


async def _with_patch(test: Callable[[pytest.MonkeyPatch], Awaitable[None]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        await test(patch)


def stepwise(url: str) -> Awaitable[None]:
    return _with_patch(lambda patch: rules.test_a_survey_goes_through_long_queues_in_steps(url, patch))


async def in_time(test: Awaitable[None]) -> None:
    """A keeper that does not come to an assertion without its guard: it waits for ever, or a call is refused."""
    try:
        await asyncio.wait_for(test, WAITS_S)
    except (TimeoutError, TypeError, ValueError, BadRecord, TooManyRules, pytest.fail.Exception) as error:
        raise AssertionError(type(error).__name__) from error


def no_job(verb: str) -> Keeper:
    return lambda url: in_time(no_records.test_to_a_verb_there_is_no_such_job(url, verb))


def takes_waiting(url: str) -> Awaitable[None]:
    return trees.test_a_waiting_parent_that_is_cancelled_ends_before_start_when_its_children_have(url)


def parked_and_counted(ended: str) -> Keeper:
    return lambda url: trees.test_a_cancelled_parent_without_an_attempt_is_counted_as_cancelling_and_as_nothing_else(
        url, ended
    )


def policy(of: str) -> Keeper:
    return lambda url: trees.test_what_becomes_of_a_child_is_what_was_said_of_it(url, of)


def below(touch: str) -> Keeper:
    return lambda url: trees.test_whoever_touches_a_descendant_carries_out_first_that_it_is_cancelled(url, touch)


def childless(state: State | None) -> Keeper:
    return lambda url: trees.test_a_job_that_has_ended_or_was_asked_to_stop_gains_no_children(url, state)


def parked(attempt: str) -> Keeper:
    return lambda url: trees.test_a_cancelled_parent_ends_when_its_attempt_and_its_children_have(url, attempt)


def at_deadline(url: str) -> Awaitable[None]:
    return trees.test_at_its_deadline_a_parked_parent_ends_as_its_own_attempt_did(url, False, Ended.COMPLETED)


def thousand(step: int) -> Keeper:
    return lambda url: trees.test_a_thousand_children_are_told_in_bounded_steps_by_any_watchdog(url, step)


def born_cancelled(how: str) -> Keeper:
    return lambda url: trees.test_a_child_that_is_born_cancelled_is_never_open_and_counts_as_a_cancelled_one(url, how)


def takes_along(state: State) -> Keeper:
    return lambda url: trees.test_a_parent_that_never_ran_takes_its_children_with_it(url, state)


def superseded(state: State) -> Keeper:
    return lambda url: supersede.test_a_newer_job_of_a_key_has_the_older_one_cancelled(url, state)


def free_key(state: State) -> Keeper:
    return lambda url: supersede.test_a_job_that_ended_is_not_superseded_and_its_key_is_free(url, state)


def born_with_key(how: str) -> Keeper:
    return lambda url: supersede.test_a_job_that_is_born_cancelled_supersedes_and_leaves_the_key_free(url, how)


ACKED = "redis.call('XACK', stream, group, unpack(acked))\n"
DELETED = "redis.call('XDEL', stream, unpack(acked))\n"
LATE = "keeps_late(job, told)"
KEPT = f"outcome == 'succeeded' and {LATE}"
no_notice = cancels.test_a_worker_tells_all_workers_of_a_job_that_it_had_superseded_and_rings_no_notice
HASTENED = "if nearer < (tonumber(deadline) or 0) then"
CANCELLING_HELD = "elseif state == 'cancelling' and held then"

ENDED_BY = {
    "tombstoned": "enqueue", "finish": "finish", "retry": "retry", "release": "release",
    "finalize": "finalize", "reclaim": "reclaim", "given back, never run": "refuse",
}  # fmt: skip
ENDED_UNSTARTED_BY = {"queued": "cancel", "expired in the queue": "expire", "found expired by a start": "start"}

GUARDS = [
    # enqueue
    Guard("enqueue", "if existing[1] then", "if false then", again("enqueue")),
    Guard("enqueue", "existing[2] == call", "true", attempts.test_another_call_for_a_jid_in_use_writes_nothing),
    Guard("enqueue", "mark and wish and tonumber(mark) > now", "false", table(V.ENQUEUE, None)),
    Guard("enqueue", "and tonumber(mark) > now", "", bounds.test_an_expired_tombstone_stops_nothing_and_leaves_nothing),
    Guard("enqueue", "redis.call('HGET', tombstones, jid)\n", "redis.call('HGET', tombstones, jid) or '\\t\\t\\t'\n",
          bounds.test_a_cancel_whose_record_expired_unread_is_no_tombstone),
    Guard("enqueue", "if mark then redis.call('ZREM', cancelled, jid) end", "",
          bounds.test_an_expired_tombstone_stops_nothing_and_leaves_nothing),
    Guard("enqueue", "if wish then redis.call('HDEL', tombstones, jid) end", "",
          bounds.test_an_expired_tombstone_stops_nothing_and_leaves_nothing),
    Guard("enqueue", "      redis.call('HDEL', tombstones, jid)\n      n = ", "      n = ",
          bounds.test_a_tombstone_is_consumed_by_the_enqueue_that_it_stops),
    Guard("enqueue", "  elseif parent and not parent.open then", "  elseif false then", orphan("ended")),
    Guard("enqueue", "open = was[1] == 'running' and ", "open = ", orphan("asked to stop")),
    Guard("enqueue", " and was[2] == parent_token", "", orphan("owned by another attempt")),
    # cancel
    Guard("cancel", "was[4] == request", "false", again("cancel of a running job")),
    Guard("cancel", "was[4] == request", "true", table(V.CANCEL, S.CANCELLED)),
    *(
        Guard("cancel", old, new, bounds.test_a_tombstone_is_put_off_once_by_each_request_and_keeps_its_cause)
        for old, new in (
            ("if same or tonumber(before)", "if tonumber(before)"),
            ("or tonumber(before) >= tonumber(expiry) then", "then"),
            ("string.match(kept, '^.*\\t') .. request", "kept"),
            ("if before and kept and tonumber(before) > now then", "if false then"),
        )
    ),
    Guard("cancel", "if tonumber(tombstone_ms) > 0 then", "if true then",
          cancels.test_a_cancel_of_an_unknown_jid_writes_nothing),
    Guard("cancel", "state == 'scheduled' or state == 'queued' then", "state == 'queued' then",
          table(V.CANCEL, S.SCHEDULED)),
    Guard("cancel", "if state == 'scheduled' then redis.call('ZREM', scheduled, jid) end", "",
          cancels.test_a_cancel_keeps_a_scheduled_job_from_being_queued),
    Guard("cancel", "if state == 'queued' then unread[jid] = true end", "", unread("start",
          True)),
    Guard("cancel", "running = true, waiting = true", "running = true",
          table(V.CANCEL, S.WAITING)),
    Guard("cancel", "  redis.call('ZADD', cancelled, '+inf', jid)\n  redis.call('ZADD', deadlines",
          "  redis.call('ZADD', deadlines", cancels.test_a_deadline_is_acceptance_plus_beat_plus_grace_plus_force),
    Guard("cancel", "  redis.call('ZADD', deadlines, deadline, jid)\n  redis.call('HINCRBY'",
          "  redis.call('HINCRBY'",
          cancels.test_a_deadline_is_acceptance_plus_beat_plus_grace_plus_force),
    Guard("cancel", "or terms.grace or default_grace_ms", "or default_grace_ms",
          cancels.test_a_deadline_takes_the_grace_of_the_job),
    Guard("cancel", "own_grace ~= '' and own_grace or terms.grace", "terms.grace",
          cancels.test_a_deadline_takes_the_grace_of_the_request_before_that_of_the_job),
    Guard("cancel", "tonumber(terms.slack or default_slack_ms)", "tonumber(default_slack_ms)",
          cancels.test_a_deadline_takes_the_beat_and_force_of_the_worker_that_runs_the_job),
    Guard("cancel", HASTENED, "if true then", longer_grace),
    Guard("cancel", HASTENED, "if false then", cancels.test_a_shorter_grace_brings_the_deadline_nearer),
    Guard("cancel", "local fields = { 'deadline', deadline, 'cancel_grace', grace_ms }",
          "local fields = { 'deadline', deadline, 'cancel_grace', grace_ms, 'cause', cause, 'reason', reason }",
          cancels.test_the_second_request_does_not_change_the_cause),
    Guard("cancel", "elseif state == 'cancelled' then\n    if again", "elseif false then\n    if again",
          table(V.CANCEL, S.CANCELLED)),
    Guard("cancel", "  if not hushed then redis.call('PUBLISH', notice_prefix .. jid, 'cancel') end\n",
          "  redis.call('PUBLISH', notice_prefix .. jid, 'other')\n",
          cancels.test_the_notice_rings_after_the_request_is_written),
    Guard("enqueue", "local hushed = notice_prefix == ''", "local hushed = false", no_notice),
    Guard("enqueue", "    if hushed and verdict == 'signalled' then announce('superseded') end", "", no_notice),
    Guard("finalize", "    if not hushed then redis.call('PUBLISH', notice_prefix .. jid, 'finalized') end",
          "    redis.call('PUBLISH', notice_prefix .. jid, 'finalized')", no_notice),
    Guard("cancel", "if was[5] then answer('signalled'", "if false then answer('signalled'",
          moments.test_an_attempt_that_was_cancelled_before_it_came_to_run_ends_before_start),
    # moments: enqueue, expire, start, and every ending
    Guard("enqueue", "if first < math.huge then redis.call('ZADD', timers, first, jid) end", "",
          moments.test_the_timer_goes_from_the_first_moment_to_the_second),
    Guard("enqueue", "if first < math.huge then redis.call('ZADD', timers, first, jid) end",
          "redis.call('ZADD', timers, first, jid)", moments.test_a_job_without_moments_has_no_timer),
    Guard("expire", "elseif not LIVE[state] or at == math.huge then", "elseif at == math.huge then",
          moments.test_a_users_cancel_that_was_accepted_before_stands),
    Guard("expire", "elseif not LIVE[state] or at == math.huge then", "elseif at == math.huge then",
          table(V.EXPIRE, S.SUCCEEDED)),
    Guard("expire", "elseif not LIVE[state] or at == math.huge then", "elseif not LIVE[state] then",
          table(V.EXPIRE, S.RUNNING)),
    Guard("expire", "not started and tonumber(expires)", "tonumber(expires)",
          moments.test_a_job_that_has_been_started_does_not_expire),
    Guard("expire", "if first > now then", "if false then", table(V.EXPIRE, S.RUNNING)),
    Guard("expire", "    redis.call('ZREM', timers, jid)\n    answers[#answers + 1] = { 'missing' }",
          "    answers[#answers + 1] = { 'missing' }",
          lambda url: moments.test_a_timer_that_stands_for_nothing_is_dropped(url, None)),
    Guard("expire", "    redis.call('ZREM', timers, jid)\n    answers[#answers + 1] = { 'stale'",
          "    answers[#answers + 1] = { 'stale'",
          lambda url: moments.test_a_timer_that_stands_for_nothing_is_dropped(url, S.SUCCEEDED)),
    Guard("expire", "  elseif cause then\n    redis.call('ZREM', timers, jid)\n", "  elseif cause then\n",
          lambda url: moments.test_a_job_that_runs_past_its_moment_is_asked_to_stop_like_by_any_cancel(url, S.RUNNING)),
    Guard("expire", "    redis.call('ZADD', timers, digits[at], jid)\n", "",
          moments.test_the_timer_goes_from_the_first_moment_to_the_second),
    Guard("expire", "if state == 'scheduled' or state == 'queued' then", "if state == 'queued' then",
          table(V.EXPIRE, S.SCHEDULED)),
    Guard("expire", "first == due_by and 'deadline' or 'expired'", "'expired'",
          moments.test_the_earlier_moment_gives_the_cause),
    Guard("start", "if first > now then", "if true then", too_late),
    Guard("start", "and not resent and over(", "and over(",
          moments.test_a_start_that_is_sent_again_past_the_moment_is_answered_as_the_first_was),
    Guard("start", "not started and tonumber(expires)", "tonumber(expires)",
          moments.test_a_handlers_expires_says_nothing_about_a_second_attempt),
    Guard("start", "if own or length == '-' then", "if length == '-' then",
          moments.test_what_the_producer_said_stands_before_what_the_handler_says),
    Guard("start", "if due_by and not own[10] then", "if due_by then",
          moments.test_what_the_producer_said_stands_before_what_the_handler_says),
    Guard("start", "if due_by and not own[10] then", "if false then",
          moments.test_a_handlers_deadline_runs_from_the_enqueueing_and_is_written_at_the_start),
    Guard("start", "        leftovers[#leftovers + 1] = entry\n        answer = {", "        answer = {", too_late),
    Guard("start", "elseif (unknown or was[5] == token) and state", "elseif was[5] == token and state",
          moments.test_an_attempt_that_was_cancelled_before_it_came_to_run_ends_before_start),
    Guard("start", "elseif (unknown or was[5] == token) and state", "elseif unknown and state",
          moments.test_a_start_that_is_sent_again_after_a_cancel_ends_the_job_that_nobody_runs),
    Guard("start", "elseif (unknown or was[5] == token) and state", "elseif state",
          moments.test_an_attempt_that_was_cancelled_before_it_came_to_run_ends_before_start),
    Guard("start", "was[5] == token and 'gone' or 'stale'", "'stale'",
          moments.test_a_start_that_is_sent_again_after_its_cancel_was_finalized_is_told_that_it_was_its_own),
    Guard("start", "was[5] == token and 'gone' or 'stale'", "'gone'",
          moments.test_a_start_that_is_sent_again_after_its_cancel_was_finalized_is_told_that_it_was_its_own),
    *(
        Guard(verb, "redis.call('ZREM', timers, unpack(ended_jids)) ", "", timer_goes(how))
        for verb, how in (
            (V.FINISH, "finish"), (V.RETRY, "fail"), (V.CANCEL, "cancel queued"), (V.FINALIZE, "finalize"),
            (V.RECLAIM, "reclaim"), (V.REFUSE, "refuse"),
        )
    ),
    # start
    Guard("start", "(state == 'queued' and was[2] == entry)", "(state == 'queued')",
          attempts.test_what_was_delivered_but_never_started_costs_no_loss),
    Guard("start", "(state == 'queued' and was[2] == entry)", "(was[2] == entry)",
          cancels.test_a_cancel_keeps_a_delivered_entry_from_starting),
    Guard("start", "state == 'running' and was[5] == token", "false", again("start")),
    Guard("start", "and was[6] == by", "",
          attempts.test_a_worker_that_lost_a_reply_may_adopt_its_own_attempt_and_nobody_else),
    Guard("start", "adopt == '1' and was[6]", "was[6]",
          attempts.test_a_worker_that_lost_a_reply_may_adopt_its_own_attempt_and_nobody_else),
    Guard("start", "(tonumber(was[3]) or math.huge) > WIRE", "false", table(V.START, S.QUEUED)),
    Guard("start", "if was[4] ~= ARGV[kind_at] then", "if false then", table(V.START, S.QUEUED)),
    Guard("start", "if mark == 'inf' then", "if true then",
          bounds.test_a_tombstone_outlives_the_unread_entry_of_an_older_job),
    Guard("start", "if mark == 'inf' then", "if false then", unread("start", True)),
    Guard("start", "and was[2] == entry then\n    -- The entry of", "and false then\n    -- The entry of",
          attempts.test_two_workers_with_one_entry_start_it_once),
    Guard("start", "        attempt = attempt + 1\n", "", attempts.test_every_start_mints_a_higher_attempt),
    Guard("start", "if state == 'cancelled' and was[2] == entry then was_read(jid_of(job)) end", "",
          unread("start", False)),
    Guard("start", "state == 'cancelled' and was[2] == entry then was_read", "state == 'cancelled' then was_read",
          former("start")),
    Guard("start", "  redis.call('XDEL', stream, unpack(leftovers))\n", "", unread("start", False)),
    Guard("start", "  redis.call('XACK', stream, group, unpack(leftovers))\n", "", unread("start", False)),
    # finish, retry, release
    *(
        guard
        for verb in attempts.SETTLING
        for guard in (
            Guard(verb, "elseif now_at[4] == token then", "elseif false then",
                  again(verb if verb != V.RETRY else "retry")),
            Guard(verb, "and redis.call('HGET', job, 'parked') then now_at[2] = nil", "and false then now_at[2] = nil",
                  second_to_end(verb)),
            Guard(verb, "now_at[2] ~= token or", "",
                  attempts.test_an_older_token_is_stale_for_every_verb_that_names_one),
            Guard(verb, "if state == 'cancelling' and not", "if false and not", whatever(verb)),
            Guard(verb, "or 'completed'", "or 'confirmed'", whatever(verb)),
            Guard(verb, "['1'] = 'confirmed'", "['1'] = 'completed'", whatever(verb, True)),
            Guard(verb, "      put(fields, 'n', remember(fields, job, n, 'late_result', attempt, outcome))\n",
                  "      put(fields, 'n', n)\n", first_writer("finalize", verb)),
            Guard(verb, "  redis.call('ZREM', cancelled, jid_of(job))\n  redis.call('ZREM', deadlines",
                  "  redis.call('ZREM', deadlines", whatever(verb)),
            Guard(verb, "jid_of(job))\n  redis.call('ZREM', deadlines, jid_of(job))\n  put", "jid_of(job))\n  put",
                  whatever(verb)),
            Guard(verb, ACKED, "", whatever(verb)),
            Guard(verb, DELETED, "", whatever(verb)),
        )
    ),
    Guard("finish", "or (state ~= 'running' and state ~= 'cancelling') then", "then",
          cancels.test_a_late_success_after_finalization_is_stale_even_when_kept),
    Guard("finish", KEPT, LATE,
          lambda url: cancels.test_late_success_does_not_keep_a_failure(url, V.FINISH)),
    Guard("retry", KEPT, LATE,
          lambda url: cancels.test_late_success_does_not_keep_a_failure(url, V.RETRY)),
    Guard("finish", "told.keep == '1' or ", "",
          keeps_late("worker")),
    Guard("finish", " or was[1] == 'keep'", "",
          keeps_late("record")),
    Guard("finish", "told.finalizer or (tonumber(was[2]) or 0) > 0", "(tonumber(was[2]) or 0) > 0", left("finalizer")),
    Guard("finish", "(tonumber(was[2]) or 0) > 0 or was[3] then", "was[3] then", left("open child")),
    Guard("finish", " or was[3] then return false", " then return false", left("cancelled child")),
    Guard("finish", KEPT, "outcome == 'succeeded'", whatever(V.FINISH)),
    Guard("finish", KEPT, "false",
          keeps_late("record")),
    Guard("finish", "          redis.call('ZREM', cancelled, jid_of(job))\n", "",
          keeps_late("record")),
    Guard("finish", "          redis.call('ZREM', deadlines, jid_of(job))\n", "",
          keeps_late("record")),
    Guard("retry", "failures > tonumber(terms_of(job).retries or 0)", "false", failures(0)),
    Guard("retry", "failures > tonumber(terms_of(job).retries or 0)", "true", failures(2)),
    Guard("release", "put(fields, 'state', 'queued')", "put(fields, 'failures', 1) put(fields, 'state', 'queued')",
          attempts.test_hand_backs_spend_nothing),
    # every ending
    Guard("finish", "  redis.call('PEXPIRE', job, keep_ms[state])\n", "", expiry(S.SUCCEEDED)),
    Guard("finish", "succeeded = keep_succeeded_ms, failed", "succeeded = keep_ended_ms, failed",
          expiry(S.SUCCEEDED)),
    Guard("finish", "failed = keep_ended_ms, ", "failed = keep_succeeded_ms, ",
          expiry(S.FAILED)),
    Guard("finish", "      redis.call('ZADD', ended_index[state], unpack(members))\n", "",
          lambda url: bounds.test_an_index_of_ended_jobs_forgets_a_job_when_its_record_expires(url, S.SUCCEEDED)),
    Guard("note", "if over > 0 then redis.call('HDEL', job, 'e' .. digits[over]) end", "",
          bounds.test_a_jobs_history_keeps_the_newest_lines_and_no_more),
    Guard("finish", "if over > 0 then redis.call('HDEL', job, 'e' .. digits[over]) end", "",
          bounds.test_a_flood_of_stale_calls_does_not_make_a_record_grow),
    Guard("note", "'MAXLEN', '~', log_limit, ", "", bounds.test_the_event_log_is_bounded),
    Guard("start", "if was[6] and was[6] ~= by then redis.call('XCLAIM', stream, group, was[6], 0, entry, ",
          "if false then redis.call('XCLAIM', stream, group, was[6], 0, entry, ",
          attempts.test_the_entry_of_a_running_job_goes_back_to_its_owner_when_a_new_group_gave_it_away),
    # renew, note
    Guard("renew", "was[2] ~= ARGV[at] or", "", table(V.RENEW, S.RUNNING)),
    Guard("renew", "or (state ~= 'running' and state ~= 'cancelling') then", "then",
          cancels.test_a_good_lease_does_not_protect_a_job_from_its_own_cancel),
    Guard("note", "and not stands(job, tonumber(was[3]) or 0, name, attempt, facts) then", "then", again("note")),
    Guard("note", "local LATELY = 4", "local LATELY = 1",
          attempts.test_a_line_that_is_sent_again_after_others_have_written_theirs_is_not_written_twice),
    Guard("note", "if its == name and rest", "if rest",
          attempts.test_a_line_that_is_sent_again_after_others_have_written_theirs_is_not_written_twice),
    Guard("note", "was[2] ~= ARGV[at] or", "", table(V.NOTE, S.RUNNING)),
    Guard("note", "or (state ~= 'running' and state ~= 'cancelling') then", "then", table(V.NOTE, S.SUCCEEDED)),
    Guard("note", "if #fields > 0 then redis.call('HSET', job, unpack(fields)) end",
          "redis.call('HSET', job, 'saved', '', unpack(fields))", attempts.test_a_note_that_says_nothing_is_harmless),
    # refuse
    Guard("refuse", "elseif was[2] ~= entry or state ~= 'queued' then", "elseif state ~= 'queued' then",
          table(V.REFUSE, S.QUEUED)),
    Guard("refuse", "elseif was[2] ~= entry or state ~= 'queued' then", "elseif was[2] ~= entry then",
          table(V.REFUSE, S.RUNNING)),
    Guard("refuse", "limit > 0 and refusals > limit", "false", table(V.REFUSE, S.QUEUED)),
    Guard("refuse", "state == 'cancelled' and was[2] == entry then was_read", "state == 'cancelled' then was_read",
          former("refuse")),
    Guard("refuse", "if state == 'cancelled' and was[2] == entry then was_read(jid) end", "",
          cancels.test_a_cancelled_job_that_is_given_back_stays_cancelled_and_its_entry_goes),
    Guard("refuse", "if was[2] ~= entry or state == 'cancelled' then acked[#acked + 1] = entry end", "",
          cancels.test_a_cancelled_job_that_is_given_back_stays_cancelled_and_its_entry_goes),
    Guard("refuse", "ARGV[at + 6] == '1' and was[9]", "was[9]", given_back(False)),
    Guard("refuse", "ARGV[at + 6] == '1' and was[9]", "was[9]", given_back(True)),
    Guard("refuse", "and was[9] == by and was[2] == entry", "and was[2] == entry", given_back(False)),
    Guard("refuse", "and was[9] == by and was[2] == entry", "and was[9] == by", given_back(False)),
    Guard("refuse", "elseif own and state == 'cancelling' then", "elseif false then", table(V.REFUSE, S.CANCELLING)),
    Guard("refuse", "elseif own and state == 'running' then", "elseif false then", table(V.REFUSE, S.RUNNING)),
    # promote
    Guard("promote", "elseif state ~= 'scheduled' then", "elseif false then",
          cancels.test_a_cancel_keeps_a_scheduled_job_from_being_queued),
    Guard("promote", "elseif due > now then", "elseif false then", table(V.PROMOTE, S.SCHEDULED)),
    # finalize
    Guard("finalize", "elseif state ~= 'cancelling' then", "elseif false then", table(V.FINALIZE, S.CANCELLED)),
    Guard("finalize", "elseif deadline > now then", "elseif false then",
          cancels.test_nobody_finalizes_before_the_deadline),
    Guard("finalize", "ARGV[at] == '1'", "true", gone("finalize", False)),
    Guard("finalize", "ARGV[at] == '1'", "false", gone("finalize", True)),
    Guard("finalize", "if ended == 'abandoned' and not was[8] then", "if true then", gone("finalize", True)),
    Guard("finalize", "  elseif state ~= 'cancelling' then\n    redis.call('ZREM', deadlines, jid)\n",
          "  elseif state ~= 'cancelling' then\n",
          wrong_job(S.RUNNING)),
    Guard("finalize", ACKED, "",
          taken_over("finalize")),
    Guard("finalize", DELETED, "",
          taken_over("finalize")),
    # reclaim
    Guard("reclaim", "if alive then", "if false then", good_lease(S.QUEUED)),
    Guard("reclaim", "if alive then", "if false then", good_lease(S.RUNNING)),
    Guard("reclaim", "if alive then", "if false then", good_lease(S.CANCELLING)),
    Guard("reclaim", "was[5] == owner and was[4] == entry", "was[4] == entry",
          attempts.test_an_attempt_of_another_owner_is_not_reclaimed),
    Guard("reclaim", "was[5] == owner and was[4] == entry", "was[5] == owner",
          attempts.test_an_entry_that_the_record_does_not_name_takes_no_attempt_away),
    Guard("reclaim", "state == 'queued' and was[4] == entry then", "state == 'queued' then",
          attempts.test_a_reclaimed_job_stands_in_the_queue_once_and_nobody_holds_it),
    Guard("reclaim", "elseif state == 'running' and held then",
          "elseif (state == 'running' or state == 'cancelling') and held then",
          lambda url: cancels.test_a_cancelled_job_is_never_reclaimed(url, True)),
    Guard("reclaim", CANCELLING_HELD, "elseif false then", table(V.RECLAIM, S.CANCELLING)),
    Guard("reclaim", "if losses > tonumber(terms_of(job).max_losses or default_max_losses) then", "if false then",
          lambda url: attempts.test_a_job_fails_as_lost_when_more_workers_died_of_it_than_it_may(url, 2)),
    Guard("reclaim", "if losses > tonumber(terms_of(job).max_losses or default_max_losses) then", "if losses > 0 then",
          lambda url: attempts.test_a_job_fails_as_lost_when_more_workers_died_of_it_than_it_may(url, 2)),
    Guard("reclaim", "owner_gone == '1'", "true", gone("reclaim", False)),
    Guard("reclaim", "owner_gone == '1'", "false", gone("reclaim", True)),
    Guard("reclaim", "if mark then acked[#acked + 1] = entry end", "", unread("reclaim", True)),
    Guard("reclaim", "if mark == 'inf' then redis.call('ZREM', cancelled, jid) end", "", unread("reclaim", True)),
    Guard("reclaim", "if was[4] ~= entry or state == 'cancelled' then acked[#acked + 1] = entry end", "",
          unread("reclaim", False)),
    Guard("reclaim", "if state == 'cancelled' and was[4] == entry then was_read(jid) end", "",
          unread("reclaim", False)),
    Guard("reclaim", "state == 'cancelled' and was[4] == entry then was_read", "state == 'cancelled' then was_read",
          former("reclaim")),
    Guard("reclaim", "requeue(job, {}, n, attempt, 'never started')",
          "requeue(job, { 'losses', 1 }, n, attempt, 'never started')",
          attempts.test_what_was_delivered_but_never_started_costs_no_loss),
    Guard("reclaim", ACKED, "", attempts.test_a_reclaimed_job_stands_in_the_queue_once_and_nobody_holds_it),
    Guard("reclaim", DELETED, "", attempts.test_a_reclaimed_job_stands_in_the_queue_once_and_nobody_holds_it),
    # hooks
    *(Guard(script, "  clean_up_after(job, attempt, ended)\n", "", admitted(way)) for way, script in ENDED_BY.items()),
    *(
        Guard(script, "  clean_up_after(job, attempt, 'before_start', ties)\n", "", admitted(way))
        for way, script in ENDED_UNSTARTED_BY.items()
    ),
    Guard("cancel", "redis.call('HSET', job, 'hook', (", "redis.call('HSET', job, 'none', (", admitted("queued")),
    Guard("cancel", "  redis.call('SADD', prefix .. 'queues', queue_name)\n", "", admitted("queued")),
    Guard("cancel", "'for_attempt', was[4] or 0", "'for_attempt', 0", admitted("handed back")),
    Guard("cancel", "if is_wanted(occasion, attempt) then", "if true then", no_hook("queued")),
    Guard("cancel", "(occasion == 'attempted' and (tonumber(attempt) or 0) > 0)", "occasion == 'attempted'",
          opted_out("scheduled")),
    Guard("cancel", "(occasion == 'attempted' and (tonumber(attempt) or 0) > 0)", "false", opted_out("handed back")),
    Guard("enqueue", "(occasion == 'attempted' and (tonumber(attempt) or 0) > 0)", "occasion == 'attempted'",
          opted_out("tombstoned")),
    Guard("cancel", "ties.on_cancel or declared(", "declared(", said("always", "", 1)),
    Guard("cancel", "ties.on_cancel or declared(", "declared(", said("attempted", "always", 0)),
    Guard("cancel", "if is_hook(kind) then", "if false then", hook_cancelled(False)),
    Guard("finish", "if is_hook(kind) then", "if false then", hook_cancelled(True)),
    Guard("cancel", "redis.call('EXISTS', key_of(jid)) == 0", "true",
          hooks.test_a_hook_takes_no_jid_that_is_in_use),
    Guard("finish", "if was[9] then put(more, 'saved', was[9]) end", "", hooks.test_a_hook_is_told_of_its_job),
    Guard("cancel", "%020x.%04x', now, count, shard)", "%020x.%04x', now, count, 0)",
          hooks.test_a_hook_lives_in_the_shard_of_its_job),
    Guard("start", "if ARGV[kind_at + 8] ~= '' then put(fields, 'on_cancel', ARGV[kind_at + 8]) end", "",
          hooks.test_a_job_remembers_the_hook_of_the_worker_that_started_it),
    Guard("start", "then clean_up_late(job, ARGV[kind_at + 8]) end", "then end", late_hook("always", 1)),
    Guard("start", "        clean_up_late(job, ARGV[kind_at + 8])\n", "",
          hooks.test_a_job_that_a_start_finds_expired_has_the_hook_that_its_worker_knows_of),
    Guard("start", "if not occasion or occasion == '' then return end",
          "if occasion == '' then occasion = 'always' end", late_hook("", 0)),
    Guard("start", "and is_wanted(occasion, was[3] or 0)", "", late_hook("attempted", 0)),
    Guard("start", "not was[1] and not was[2] and", "not was[2] and", decided("by a worker")),
    Guard("start", "not was[1] and not was[2] and", "not was[1] and", decided("by its record")),
    Guard("start", "if state == 'cancelled' and was[4] == ARGV[kind_at] then", "if state == 'cancelled' then",
          decided("by another kind")),
    Guard("refuse", "if state == 'cancelled' then clean_up_late(job, declared(was[6])) end", "",
          unread_hook("a worker without room", "always", 1)),
    Guard("reclaim", "if state == 'cancelled' then clean_up_late(job, declared(was[7])) end", "",
          unread_hook("the watchdog", "always", 1)),
    Guard("refuse", "declared(was[6])", "'always'", unread_hook("a worker without room", "attempted", 0)),
    Guard("reclaim", "declared(was[7])", "'always'", unread_hook("the watchdog", "attempted", 0)),
    Guard("start", "        if own[11] then tell_parent(job, 'hook_started', digits[attempt]) end\n", "",
          told("succeeded")),
    Guard("start", "      local answer = { 'started', attempt, was[8] }\n",
          "      if own[11] then tell_parent(job, 'hook_started', digits[attempt]) end\n"
          "      local answer = { 'started', attempt, was[8] }\n", hooks.test_a_hook_is_told_of_its_job),
    Guard("finish", "if told.hook then", "if false then", told("failed: E")),
    Guard("retry", "(state == 'scheduled' and ', retried' or '')", "''", told("timed_out, retried")),
    Guard("retry", "(state == 'scheduled' and ', retried' or '')", "', retried'",
          hooks.test_a_hook_is_tried_again_after_a_failure_and_after_a_loss),
    Guard("reclaim", "if is_hook(was[7]) then tell_parent(job, 'hook_ended', attempt, 'lost with ' .. owner) end", "",
          told("lost with a")),
    Guard("refuse", "if is_hook(was[6]) then tell_parent(job, 'hook_ended', attempt, 'handed_back') end", "",
          hooks.test_a_hook_that_never_came_to_run_is_told_to_have_been_handed_back),
    Guard("refuse", "if is_hook(was[6]) then tell_parent(job, 'hook_ended', attempt, 'failed: ' .. why) end", "",
          hooks.test_a_hook_whose_kind_nobody_knows_is_told_to_have_failed),
    Guard("finish", "if was[1] ~= jid then return end", "", untold(True)),
    Guard("finish", "if was[1] ~= jid then return end", "if not was[2] then was[2] = 0 end", untold(False)),
    Guard("declare", "if said and tonumber(string.match(said, '%d+$') or 0) + tonumber(keep_ms) < now then",
          "if said then", hooks.test_a_kind_loses_its_hook_only_when_no_worker_has_declared_it_for_a_while),
    Guard("declare", "redis.call('HDEL', hooks, kind)", "redis.call('HLEN', hooks)",
          hooks.test_a_kind_loses_its_hook_only_when_no_worker_has_declared_it_for_a_while),
    # rules: deciding and taking back
    Guard("decide", "if before then return { 'decided', before } end", "",
          rules.test_a_decision_that_is_sent_again_changes_nothing),
    Guard("decide", "if live >= tonumber(most) then", "if false then", crowded),
    Guard("decide", " - redis.call('HEXISTS', rules, 'walked')", "", crowded),
    Guard("decide", " - redis.call('HEXISTS', rules, 'newest')", "", crowded),
    Guard("decide", "if cutoff ~= '' and tonumber(cutoff) < tonumber(admitted) then", "if false then",
          rules.test_what_came_after_the_survey_is_not_covered_by_its_decision),
    Guard("decide", "if cutoff ~= '' and tonumber(cutoff) < tonumber(admitted) then", "if cutoff ~= '' then",
          rules.test_a_cutoff_of_the_future_covers_nobody_who_is_still_to_come),
    Guard("decide", "announce('rule')\n", "",
          lambda url: in_time(rules.test_an_announcement_goes_to_every_worker_when_a_rule_is_decided(url))),
    Guard("revoke", "if was[2] ~= 'settling' and was[2] ~= 'standing' then return { 'stale', was[2] } end", "",
          rules.test_what_is_settled_cannot_be_revoked),
    Guard("revoke", "if not was[1] then return { 'missing' } end",
          "if not was[1] then return { 'stale', 'settled' } end",
          rules.test_what_is_settled_cannot_be_revoked),
    Guard("revoke", "  redis.call('HDEL', rules, number)\n", "", rules.test_a_rule_that_was_revoked_stops_nothing_more),
    Guard("revoke", "if count_live() == 0 then redis.call('DEL', rules) end", "redis.call('DEL', rules)",
          rules.test_a_revoked_rule_takes_no_other_with_it),
    Guard("revoke", "  redis.call('PEXPIRE', own, keep_ended_ms)\n", "",
          rules.test_a_rule_that_was_revoked_stops_nothing_more),
    Guard("carry_out", "  redis.call('PEXPIRE', own, keep_ended_ms)\n", "",
          rules.test_nothing_is_counted_for_a_scope_that_nobody_knows_any_more),
    Guard("carry_out", "  if redis.call('EXISTS', own) == 0 then return end\n", "",
          rules.test_settling_a_rule_whose_counts_are_gone_makes_no_new_ones),
    # rules: judging
    Guard("carry_out", "if (tonumber(facts.seq) or 0) <= rule.cutoff then return", "do return",
          rules.test_what_came_after_the_survey_is_not_covered_by_its_decision),
    Guard("enqueue", "return rule.until_ms > now and now or nil", "return now",
          rules.test_a_job_that_comes_after_the_decision_is_left_alone),
    Guard("enqueue", "return rule.until_ms > now and now or nil", "return nil",
          rules.test_the_same_enqueue_sent_again_is_told_again_that_it_was_fenced),
    Guard("start", "        if judged_now then put(fields, 'cleared', digits[cleared_now()]) end\n", "",
          rules.test_what_a_job_becomes_after_the_decision_does_not_matter),
    Guard("retry", "if judged_now and not later then redis.call('HSET', job, 'cleared', digits[cleared_now()]) end", "",
          rules.test_a_failure_after_the_decision_does_not_bring_a_rule_for_failed_jobs_back),
    Guard("renew", "rule.number > cleared and covered_at", "covered_at",
          rules.test_what_a_job_becomes_after_the_decision_does_not_matter),
    Guard("renew", "local cleared = tonumber(facts.cleared) or 0\n", "local cleared = 0\n",
          rules.test_what_a_job_becomes_after_the_decision_does_not_matter),
    Guard("start", "if newest <= (tonumber(cleared) or 0) and not (has_ties(own)", "if not (has_ties(own)",
          rules.test_a_job_without_anything_of_its_own_is_judged_too),
    Guard("start", "and not (has_ties(own) and redis.call('HGET', job, 'parent')) then", "then",
          below("start")),
    Guard("carry_out", "<= rule.cutoff then return rule.at end", "<= rule.cutoff then return now end",
          rules.test_the_age_of_a_job_is_that_at_the_decision),
    Guard("renew", "if is_hook(facts.kind) then return nil, facts end", "", never_covered(S.RUNNING)),
    Guard("start", "if is_hook(facts.kind) then return nil, facts end", "", never_covered(S.QUEUED)),
    Guard("survey", "or is_hook(facts.kind) then", "then", never_covered(S.QUEUED)),
    Guard("cancel", "  if wish and LIVE[facts.state] then\n", "  if wish then\n",
          trees.test_a_failed_job_that_hands_a_cancel_on_stays_failed),
    Guard("look", "if wish and LIVE[facts.state] then", "if wish then",
          rules.test_a_look_says_nothing_about_a_job_that_has_ended),
    Guard("look", "    local wish, facts = decided(KEYS[i])\n", "    local wish, facts = nil, {}\n", shown(S.QUEUED)),
    Guard("carry_out", "function(one, other) return one.number < other.number end",
          "function(one, other) return one.number > other.number end", rules.test_the_first_rule_gives_the_cause),
    Guard("renew", "grace = told.grace_ms, at", "grace = '', at",
          rules.test_the_grace_of_a_rule_stands_before_that_of_the_job),
    # whoever touches a job
    *(
        Guard(script, "  heed(job)\n  local was = fields_of(job, ", "  local was = fields_of(job, ", touched(way))
        for script, way in (("promote", "promote"), ("refuse", "refuse"), ("expire", "expire"), ("cancel", "cancel"))
    ),
    Guard("reclaim", "  if not alive then heed(job) end\n", "", touched("reclaim")),
    Guard("reclaim", "  if not alive then heed(job) end\n", "  heed(job)\n",
          rules.test_a_worker_with_a_good_lease_is_asked_itself),
    Guard("start", "judged_now = heed_known(job, was[10], was[11], true)", "judged_now = false", touched("start")),
    Guard("renew", "if was[1] and heed_known(job, was[3], was[4]) then", "if false then", touched("renew")),
    *(
        Guard(verb, "if now_at[1] and heed_known(job, now_at[5], now_at[6]) then", "if false then", touched(verb))
        for verb in (V.FINISH, V.RETRY, V.RELEASE)
    ),
    Guard("enqueue", "  local job = key_of(jid)\n  heed(job)\n", "  local job = key_of(jid)\n",
          touched("enqueue of a child")),
    Guard("start", "  unread[jid] = nil\n", "", entry_goes("start")),
    Guard("refuse", "  unread[jid] = nil\n", "", entry_goes("refuse")),
    Guard("reclaim", "  unread[jid] = nil\n", "", entry_goes("reclaim of what never started")),
    Guard("carry_out", "if state == 'queued' then unread[jid] = true end", "",
          rules.test_the_entry_of_a_job_that_a_walk_has_stopped_goes_when_it_is_read),
    Guard("carry_out", "if state == 'scheduled' then redis.call('ZREM', scheduled, jid) end", "",
          touched("walk, scheduled")),
    # born against a standing rule
    Guard("enqueue", "local fenced = not tombstone and fence(jid, fields)",
          "local fenced = nil",
          rules.test_a_standing_rule_hits_those_who_come_later_until_it_is_over),
    Guard("enqueue", "      put(fields, 'born', 'fenced')\n", "",
          rules.test_the_same_enqueue_sent_again_is_told_again_that_it_was_fenced),
    Guard("enqueue", "      tally(fenced.scope, 'v:cancelled')\n", "",
          rules.test_the_same_enqueue_sent_again_is_told_again_that_it_was_fenced),
    Guard("enqueue", "if tombstone or fenced then parent.born_over = jid else put(",
          "if tombstone then parent.born_over = jid else put(", born_cancelled("fenced")),
    Guard("enqueue", "if tombstone or fenced then parent.born_over = jid else put(",
          "if fenced then parent.born_over = jid else put(", born_cancelled("tombstoned")),
    Guard("enqueue", "if parent.born_over then redis.call('HSETNX', job, 'cancelled_kid', parent.born_over) end", "",
          born_cancelled("fenced")),
    # the walk
    Guard("carry_out", "if rule.number <= upto then", "if true then",
          rules.test_a_rule_that_is_decided_during_a_walk_gets_one_of_its_own),
    Guard("carry_out", "redis.call('HSET', rules, 'walked', upto)", "redis.call('HSET', rules, 'walked', newest)",
          rules.test_a_rule_that_is_decided_during_a_walk_gets_one_of_its_own),
    Guard("carry_out", "if redis.call('EXISTS', rules) == 1 then redis.call('HSET', rules, 'walked', upto) end",
          "redis.call('HSET', rules, 'walked', upto)", walked(7)),
    Guard("carry_out", "if redis.call('EXISTS', rules) == 1 then redis.call('HSET', rules, 'walked', upto) end", "",
          lambda url: in_time(rules.test_a_standing_rule_is_walked_once_and_not_again(url))),
    Guard("carry_out", "  redis.call('DEL', walk)\n", "  redis.call('HDEL', walk, 'upto')\n",
          rules.test_a_standing_rule_is_walked_once_and_not_again),
    Guard("carry_out", "'(' .. cursor, '+'", "cursor, '+'", lambda url: in_time(walked(1)(url))),
    Guard("carry_out", "over = left == 0 and #entries < count", "over = true", walked(1)),
    Guard("carry_out", "over = left == 0 and #entries < count", "over = #entries < count",
          rules.test_a_step_that_has_stopped_as_many_as_it_may_goes_on_from_there),
    Guard("carry_out", "    if spent >= tonumber(hits) then break end\n", "",
          rules.test_a_step_that_has_stopped_as_many_as_it_may_goes_on_from_there),
    Guard("carry_out", "  redis.call('DEL', walk) -- whatever", "  -- whatever",
          rules.test_a_walk_is_over_when_every_rule_has_been_revoked),
    Guard("carry_out", "if newest == 0 then\n  redis.call('DEL', walk)", "if false then\n  redis.call('DEL', walk)",
          rules.test_a_walk_is_over_when_every_rule_has_been_revoked),
    Guard("carry_out", "prefix .. 'waiting', cursor, 'COUNT'", "scheduled, cursor, 'COUNT'", walked(7)),
    Guard("carry_out", "place == -1 and scheduled or", "false or", walked(7)),
    Guard("carry_out", "cursor, over = found[1], found[1] == '0'", "cursor, over = found[1], true",
          rules.test_a_walk_goes_through_large_sets_while_they_shrink),
    Guard("carry_out", "if rule.matches and rule.number <= walked and rule.until_ms <= now then", "if false then",
          rules.test_a_standing_rule_hits_those_who_come_later_until_it_is_over),
    Guard("carry_out", "      if rule.until_ms > now then\n", "      if false then\n",
          rules.test_a_standing_rule_hits_those_who_come_later_until_it_is_over),
    Guard("carry_out", "  redis.call('HINCRBY', walk, 'examined', examined)\n".lstrip(), "local _ = examined\n",
          rules.test_a_walk_says_how_far_it_is),
    Guard("survey", "prefix .. place, cursor == '0' and '-' or '(' .. cursor", "prefix .. place, '-'",
          lambda url: in_time(stepwise(url))),
    Guard("survey", "if #entries == tonumber(step) then", "if false then", stepwise),
    Guard("survey", "if wish or not LIVE[facts.state]", "if not LIVE[facts.state]",
          rules.test_a_survey_counts_what_a_rule_would_hit_and_changes_nothing),
    Guard("survey", "if wish or not LIVE[facts.state]", "if wish",
          rules.test_a_survey_leaves_out_what_is_being_cancelled_already),
    # what is counted
    Guard("carry_out", "if redis.call('EXISTS', key) == 1 then", "if true then",
          lambda url: in_time(rules.test_settling_a_rule_whose_counts_are_gone_makes_no_new_ones(url))),
    Guard("finish", "if redis.call('EXISTS', key) == 1 then", "if true then",
          rules.test_nothing_is_counted_for_a_scope_that_nobody_knows_any_more),
    Guard("finish", "if scope and ties.signalled then tally(scope, 'unfinished', -1) end", "",
          rules.test_a_scope_is_done_when_all_that_it_stopped_have_ended),
    Guard("carry_out", "if scope and ties.signalled then", "if scope then", touched("walk, queued")),
    Guard("carry_out", "  write_tallies() -- who says whether a scope is done reads them\n", "",
          lambda url: in_time(said_done("ending")(url))),
    Guard("finish", "if was[1] ~= 'settling' and tonumber(was[2] or 0) == 0 then redis.call('PUBLISH'",
          "if false then redis.call('PUBLISH'", lambda url: in_time(said_done("ending")(url))),
    Guard("carry_out", "if tonumber(redis.call('HGET', own, 'unfinished') or 0) == 0 then redis.call('PUBLISH'",
          "if false then redis.call('PUBLISH'", lambda url: in_time(said_done("walk")(url))),
    Guard("revoke", "if tonumber(redis.call('HGET', own, 'unfinished') or 0) == 0 then redis.call('PUBLISH'",
          "if false then redis.call('PUBLISH'", lambda url: in_time(said_done("revoke")(url))),
    # trees: who may have children
    Guard("enqueue", "local open = LIVE[was[1]] and not was[5]", "local open = not was[5]", childless(S.CANCELLED)),
    Guard("enqueue", "local open = LIVE[was[1]] and not was[5]", "local open = LIVE[was[1]]",
          trees.test_a_parent_whose_finalizer_was_admitted_gains_no_children),
    Guard("enqueue", "if parent_token ~= '' then open", "if true then open",
          lambda url: trees.test_any_live_job_may_be_given_children(url, S.WAITING)),
    Guard("enqueue", "elseif parent and parent.depth >= DEEPEST then", "elseif false then",
          trees.test_a_tree_is_only_so_deep),
    Guard("enqueue", "if parent then put(fields, 'depth', parent.depth + 1) end", "",
          trees.test_a_tree_is_only_so_deep),
    Guard("enqueue", "      redis.call('HSET', job, 'own', 1)\n", "",
          trees.test_a_parent_that_returns_waits_for_its_children_and_holds_nothing),
    # trees: counting
    Guard("finish", "if not seq then return end\n  redis.call('ZREM', siblings, jid)",
          "seq = seq or math.huge\n  redis.call('ZREM', siblings, jid)",
          trees.test_a_parent_that_waits_for_abandoned_children_alone_ends_when_they_are),
    Guard("finish", "if not tonumber(was[3]) or (tonumber(was[2]) or 0) > tonumber(seq) then",
          "if (tonumber(was[2]) or 0) > tonumber(seq) then",
          trees.test_a_child_whose_parent_has_no_record_any_more_leaves_nothing_behind),
    Guard("finish", "if not tonumber(was[3]) or (tonumber(was[2]) or 0) > tonumber(seq) then",
          "if not tonumber(was[3]) then",
          trees.test_a_job_that_takes_the_jid_of_one_long_gone_is_not_the_parent_of_its_children),
    Guard("start", "if not wish or (tonumber(wish.seq) or 0) > (tonumber(facts.seq) or 0) then", "if not wish then",
          trees.test_a_job_that_takes_the_jid_of_one_long_gone_does_not_cancel_its_children),
    Guard("cascade", "local from = '(' .. (was[2] or was[3] or 0)", "local from = '(' .. (was[2] or 0)",
          trees.test_a_job_that_takes_the_jid_of_one_long_gone_does_not_abandon_its_children),
    Guard("finalize", "if ended == 'abandoned' and not was[8] then", "if ended == 'abandoned' then",
          trees.test_the_code_of_a_parked_parent_that_has_ended_meanwhile_is_no_suspect_again),
    Guard("enqueue", "'state', state, 'n', '1'", "'state', 'queued', 'n', '1'",
          rules.test_a_standing_rule_sees_a_newcomer_as_it_would_be_admitted),
    Guard("enqueue", "return rule.until_ms > now and now or nil", "return rule.until_ms > now and rule.at or nil",
          rules.test_a_standing_rule_sees_a_newcomer_as_it_would_be_admitted),
    Guard("finish", "redis.call('HGET', child, 'open')) or 0) > 0 then hand_on", "nil) or 0) > 0 then hand_on",
          trees.test_a_cancel_goes_down_past_a_failed_job),
    Guard("cascade", "for _, between in ipairs(fallen) do redis.call('ZADD', cascades, now, between) end", "",
          trees.test_a_cancel_goes_down_past_a_failed_job),
    Guard("cascade", " or was[1] == 'failed' then\n  local from", " then\n  local from",
          trees.test_a_cancel_goes_down_past_a_failed_job),
    Guard("cascade", "if #told == 0 then fallen = redis.call('SPOP', prefix .. 'fallen:' .. jid, step) end", "",
          trees.test_a_cancel_goes_down_past_a_failed_job),
    Guard("cascade", "if #told == 0 and #fallen == 0 then", "if #told == 0 then",
          trees.test_many_failed_jobs_are_passed_in_bounded_steps),
    Guard("cancel", "(tonumber(ties.open) or 0) > 0 or ties.fallen", "(tonumber(ties.open) or 0) > 0",
          trees.test_a_cancel_goes_down_past_a_failed_job_that_was_the_last_child),
    Guard("finish", "  redis.call('PEXPIRE', fallen, keep_ended_ms)\n", "",
          trees.test_what_is_remembered_of_a_failed_job_has_an_expiry),
    Guard("finish", "if was[1] == 'waiting' then heed(parent) end", "",
          trees.test_a_waiting_parent_is_judged_before_it_ends),
    Guard("finish", "if was[1] == 'waiting' then heed(parent) end", "",
          trees.test_a_waiting_parent_under_a_cancelled_job_does_not_end_in_success),
    Guard("cancel", "redis.call('HSETNX', parent, 'cancelled_kid', jid)", "local _ = jid",
          trees.test_a_child_that_was_cancelled_while_its_parent_ran_counts_as_well),
    Guard("finish", "elseif state == 'failed' and was[4] ~= jid then", "elseif state == 'failed' then",
          trees.test_a_finalizer_that_fails_fails_its_parent),
    Guard("finish", "if failures <= FAILED_LISTED then", "if true then",
          trees.test_only_the_first_hundred_failed_children_are_named),
    Guard("cancel", "  if open > 0 then return end\n", "",
          trees.test_a_cancelled_child_leaves_its_siblings_running_and_its_parent_is_cancelled_in_the_end),
    Guard("finish", "  if open > 0 then return end\n", "",
          trees.test_a_finalizer_is_admitted_when_the_last_child_has_ended_and_the_parent_ends_with_it),
    Guard("finish", "if was[1] == 'waiting' and was[4] == jid then", "if false then",
          trees.test_a_finalizer_that_fails_fails_its_parent),
    Guard("finish", "elseif was[2] and not was[3] then", "elseif false then",
          trees.test_a_finalizer_runs_without_children_too),
    Guard("cascade", "elseif was[1] == 'cancelling' and was[5] then", "elseif was[1] == 'cancelling' then",
          lambda url: in_time(trees.test_a_parent_whose_children_have_ended_is_cancelled_with_its_attempt(url))),
    Guard("finish", "elseif was[1] == 'cancelling' and was[5] then", "elseif false then", parked("finish")),
    # trees: how a parent ends
    Guard("finish", "(told.finalizer or (own and redis.call('HGET', job, 'kids')))", "told.finalizer",
          trees.test_a_parent_that_returns_waits_for_its_children_and_holds_nothing),
    Guard("finish", "(told.finalizer or (own and redis.call('HGET', job, 'kids')))",
          "(own and redis.call('HGET', job, 'kids'))", trees.test_a_finalizer_runs_without_children_too),
    Guard("finish", "if outcome == 'succeeded' and (told.finalizer", "if (told.finalizer",
          trees.test_a_parent_that_fails_does_not_wait_and_its_children_go_on),
    Guard("finish", "return open > 0 and 'waiting' or", "return",
          trees.test_a_parent_that_returns_waits_for_its_children_and_holds_nothing),
    Guard("finish", "  redis.call('ZADD', prefix .. 'waiting', now, jid_of(job))\n", "",
          trees.test_a_parent_that_returns_waits_for_its_children_and_holds_nothing),
    Guard("finish", "then redis.call('ZREM', prefix .. 'waiting', unpack(ended_jids)) end", "then end",
          trees.test_a_parent_that_returns_waits_for_its_children_and_holds_nothing),
    *(
        Guard(verb, "  if open == 0 then\n", "  if true then\n", parked(verb))
        for verb in (V.FINISH, V.RETRY, V.RELEASE, V.RECLAIM)
    ),
    Guard("start", "  if was[2] then return 'cancelling' end -- a start that was sent again\n", "",
          trees.test_a_start_that_is_sent_again_after_a_cancel_parks_its_job_once),
    Guard("reclaim", "  redis.call('HDEL', job, 'entry')\n  redis.call('ZADD', prefix .. 'waiting', '+inf',",
          "  redis.call('ZADD', prefix .. 'waiting', '+inf',", parked("reclaim")),
    Guard("cancel", "    redis.call('ZADD', prefix .. 'waiting', '+inf', jid)\n", "",
          parked_and_counted("before the cancel")),
    Guard("finish", "  redis.call('ZADD', prefix .. 'waiting', '+inf', jid_of(job)) --", "  --",
          parked_and_counted("after the cancel")),
    Guard("finalize", "was[8] or (ARGV[at]", "(ARGV[at]", at_deadline),
    Guard("cancel", "    put(fields, 'parked', 'before_start')\n", "", takes_waiting),
    Guard("cascade", "now_at[1] == 'cancelling' and now_at[2] and", "now_at[1] == 'cancelling' and",
          lambda url: in_time(trees.test_an_abandoned_child_is_not_waited_for_while_the_attempt_runs_either(url))),
    Guard("cascade", "tonumber(now_at[3]) == 0 then", "true then",
          trees.test_a_parked_parent_waits_although_its_children_have_been_told),
    Guard("cascade", "    close_cancelled(parent, {}, tonumber(now_at[4]), now_at[5] or 0, now_at[2])\n", "",
          trees.test_a_parent_that_waits_for_abandoned_children_alone_ends_when_they_are),
    # trees: going down
    Guard("cascade", "local down = not was[2] and from_above(", "local down = from_above(", policy("wait")),
    Guard("cascade", "if fields_of(child, 'policy')[1] == 'abandon' then", "if false then", policy("abandon")),
    Guard("cascade", "    redis.call('HINCRBY', parent, 'open', -1)\n", "", policy("abandon")),
    Guard("start", "elseif LIVE[was[1]] or was[1] == 'failed' then", "elseif false then", below("start")),
    Guard("start", "elseif LIVE[was[1]] or was[1] == 'failed' then", "elseif LIVE[was[1]] then",
          trees.test_a_failed_job_in_between_hands_the_cancel_on),
    Guard("start", "if was[1] == 'cancelling' or was[1] == 'cancelled' then\n      wish",
          "if was[1] == 'cancelling' then\n      wish",
          trees.test_a_job_below_one_that_was_cancelled_at_once_does_not_start),
    Guard("carry_out", "(not wish or down.at < wish.at)", "not wish",
          trees.test_a_cause_that_came_down_from_above_stands_before_a_later_rule),
    Guard("look", "tonumber(was[6] or was[4]) or 0", "tonumber(was[4]) or 0", as_of_its_decision(S.RUNNING)),
    Guard("expire", "  keep_moment(job, wish, ties)\n  local grace", "  local grace", as_of_its_decision(S.RUNNING)),
    Guard("expire", "  keep_moment(job, wish, ties)\n  local words", "  local words", as_of_its_decision(S.SCHEDULED)),
    Guard("cascade", "if was[1] == 'cancelling' or was[1] == 'cancelled' or was[1] == 'failed' then\n  local from",
          "if true then\n  local from",
          trees.test_a_cascade_of_a_parent_that_has_no_record_any_more_leaves_nothing_behind),
    Guard("cascade", "was[1] == 'cancelling' or was[1] == 'cancelled' or was[1] == 'failed' then\n  local from",
          "was[1] == 'cancelling' or was[1] == 'failed' then\n  local from", takes_along(S.QUEUED)),
    Guard("cancel", "  if hands_on(ties) then announce_cascade(job) end\n  above = {}\n",
          "  above = {}\n", takes_along(S.SCHEDULED)),
    Guard("start", "  if hands_on(ties) then announce_cascade(job) end\n  above = {}\n",
          "  above = {}\n", trees.test_a_parent_that_a_start_finds_expired_takes_its_children_with_it),
    Guard("cancel", "  if hands_on(ties) then announce_cascade(job) end\n  local terms",
          "  announce_cascade(job)\n  local terms",
          lambda url: in_time(trees.test_workers_are_told_that_a_job_with_children_is_asked_to_stop(url))),
    Guard("cancel", "  if hands_on(ties) then announce_cascade(job) end\n  local terms",
          "  local terms", takes_waiting),
    Guard("cascade", "  redis.call('HSET', parent, 'cascaded', told[#told])\n", "",
          lambda url: in_time(policy("wait")(url))),
    Guard("cascade", "'WITHSCORES', 'LIMIT', 0, step)", "'WITHSCORES')", thousand(100)),
    Guard("carry_out", "if not above or above == jid then return above == jid end",
          "if true then return above == jid end",
          trees.test_descendants_are_those_below_and_not_the_job_itself),
    Guard("look", "  if bytes > MOST_BYTES then break end\n", "",
          lambda url: listing.test_large_records_are_told_in_several_short_calls(url, listing.MEBIBYTE)),
    Guard("start", "elseif no_number_in(own, 7) then", "elseif false then",
          lambda url: in_time(attempts.test_a_record_with_words_for_numbers_is_not_started(url))),
    # limits
    Guard("enqueue", "  elseif limits ~= '' and over_limit(own.group) then", "  elseif false then", most(6)),
    Guard("enqueue", "waiting >= most_waiting", "waiting > most_waiting", most(6)),
    Guard("enqueue", "waiting >= most_waiting", "waiting + 1 >= most_waiting", most(5)),
    Guard("enqueue", "        if waiting then waiting = waiting + 1 end\n", "", most(6)),
    Guard("enqueue", " - (held.err and 0 or held[1])", "", limits.test_jobs_that_workers_hold_do_not_count),
    Guard("enqueue", "redis.pcall('XPENDING'", "redis.call('XPENDING'",
          lambda url: in_time(limits.test_a_queue_that_nobody_has_read_yet_has_a_limit_too(url))),
    Guard("enqueue", "if wait > ROUNDING_MS then", "if false then", at_once("queue", 6)),
    Guard("enqueue", "if wait > ROUNDING_MS then", "if wait > 0 then", limits.test_parts_of_a_second_add_up),
    Guard("enqueue", "group = group and tonumber(group_rate)", "group = nil", at_once("group", 6)),
    Guard("enqueue", "math.max(ALLOWANCE_MS, step)", "ALLOWANCE_MS",
          limits.test_less_than_one_a_second_lets_one_come_at_once),
    Guard("enqueue", "math.max(ALLOWANCE_MS, step)", "step", at_once("queue", 5)),
    Guard("enqueue", "or tonumber(redis.call('GET', key) or 0), now)", "or now, now)",
          limits.test_room_for_one_more_comes_with_time_and_not_before),
    Guard("enqueue", "math.max(due[key] or tonumber(redis.call('GET', key) or 0), now)",
          "(due[key] or tonumber(redis.call('GET', key) or now))",
          limits.test_room_for_one_more_comes_with_time_and_not_before),
    Guard("enqueue", "  if refusal then return true end\n", "",
          lambda url: in_time(limits.test_a_job_that_is_over_one_rate_costs_nothing_of_the_other(url))),
    Guard("enqueue", "rate > 0 and not refusal then", "rate > 0 then", limits.test_a_full_queue_is_told_before_a_rate),
    Guard("enqueue", ", 'PX', digits[math.ceil(math.max(0, at - now)) + KEPT_MS])", ")",
          limits.test_a_rate_is_forgotten_a_minute_after_it_has_no_say_any_more),
    # rules of a newer busq
    Guard("start", "elseif doubt and", "elseif false and", newer_rule("another operator")),
    Guard("start", "(adopted or state", "(state",
          newer.test_a_start_that_is_sent_again_is_answered_as_before_whatever_was_decided_since),
    Guard("start", "  doubt = false\n  local changed", "  local changed",
          newer.test_a_job_beside_one_in_doubt_starts),
    Guard("start", "if not pcall(understand, rule, version, condition, compile) then",
          "understand(rule, version, condition, compile) if false then", newer_rule("another operator")),
    Guard("start", "  assert(version == RULE_VERSION)\n", "", newer_rule("a version in front")),
    Guard("start", "assert(OPERATORS[word])", "OPERATORS[word] or function() return false end",
          newer_rule("another operator")),
    Guard("start", "assert(FIELDS[node.f])", "FIELDS[node.f] or { nil, text_of(node.f) }", newer_rule("another field")),
    Guard("start", "    assert(value ~= nil)\n", "", newer_rule("another sort of operand")),
    Guard("start", "assert(type(part) == 'string' or type(part) == 'number')", "", newer_rule("a path in other words")),
    Guard("start", "      assert(node.p[1] ~= nil)\n", "      node.p = node.p or {}\n", newer_rule("no path")),
    Guard("start", "      assert(type(node[2]) == 'string')\n", "", newer_rule("descendants of something else")),
    Guard("start", "tonumber(cutoff) or math.huge", "tonumber(cutoff) or 0",
          newer.test_garbage_among_the_rules_keeps_everything_from_starting_and_nothing_from_ending),
    Guard("refuse", "local function cleared_now() return unjudged and unjudged - 1 or newest end",
          "local function cleared_now() return newest end",
          newer.test_a_newer_rule_decides_once_it_can_be_judged_whoever_passed_it_over),
    Guard("enqueue", "put(fields, 'cleared', digits[cleared_now()])", "put(fields, 'cleared', digits[newest])",
          newer.test_a_standing_newer_rule_hits_those_who_came_while_nobody_could_judge_it),
    Guard("start", "return rule.at <= since and since < rule.until_ms and since or nil", "return nil",
          newer.test_a_standing_newer_rule_hits_those_who_came_while_nobody_could_judge_it),
    Guard("start", "and since < rule.until_ms and", "and",
          newer.test_a_standing_newer_rule_that_is_over_covers_nobody_who_came_later),
    Guard("start", "  doubt = before or doubted[key]\n", "  doubt = before\n",
          newer.test_a_child_does_not_start_while_nobody_can_say_whether_its_parent_is_to_stop),
    Guard("start", "  doubt = before or doubted[key]\n", "",
          newer.test_a_child_does_not_start_while_nobody_can_say_whether_its_parent_is_to_stop),
    Guard("carry_out", "if cleared_now() <= walked then", "if newest <= walked then",
          lambda url: in_time(newer.test_a_watchdog_settles_what_is_older_than_a_newer_rule_and_leaves_the_rest(url))),
    Guard("carry_out", "if upto > cleared_now() then return { 'idle' } end\n", "",
          newer.test_a_walk_that_a_newer_watchdog_has_begun_is_its_own),
    Guard("carry_out", "if rule.matches and rule.number <= walked", "if rule.number <= walked",
          newer.test_a_standing_newer_rule_is_taken_down_by_those_who_can_judge_it),
    # keys
    Guard("enqueue", "  if LIVE[was[1]] then\n    local wish", "  if false then\n    local wish", superseded(S.QUEUED)),
    Guard("enqueue", "  if LIVE[was[1]] then\n    local wish", "  if was[1] then\n    local wish",
          supersede.test_an_older_job_that_is_cancelling_keeps_its_first_cause),
    Guard("enqueue", "  local job = key_of(before)\n  heed(job)\n", "  local job = key_of(before)\n",
          supersede.test_a_rule_that_was_decided_before_gives_the_cause),
    Guard("finish", "if key and redis.call('HGET', prefix .. 'keyed', key) == jid then", "if key then",
          supersede.test_a_superseded_job_that_ends_leaves_the_key_to_the_newest),
    Guard("finish", "if key and redis.call('HGET', prefix .. 'keyed', key) == jid then", "if false then",
          free_key(S.SUCCEEDED)),
    Guard("enqueue", "if lives then redis.call('HSET'", "if true then redis.call('HSET'", born_with_key("fenced")),
    Guard("enqueue", "own.key, jid, not tombstone and not fenced)", "own.key, jid, not fenced)",
          born_with_key("tombstoned")),
    Guard("enqueue", "local function supersede(key, jid, lives)\n  write_parents()\n",
          "local function supersede(key, jid, lives)\n",
          supersede.test_a_child_that_supersedes_its_only_sibling_keeps_their_parent_waiting),
    Guard("enqueue", "  parents = {}\n", "",
          supersede.test_a_parent_that_is_superseded_gains_no_more_children_in_the_same_call),
    # bury, forget, prune
    Guard("bury", "if #pending == 0 then", "if false then",
          lambda url: bounds.test_an_entry_that_is_no_job_is_buried_with_its_bytes(url, {b"jid": b"j"})),
    Guard("forget", "if held > 0 then", "if false then", bounds.test_a_worker_that_holds_entries_is_never_forgotten),
    Guard("forget", "redis.call('HDEL', drains, worker)\n", "", bounds.test_no_wish_to_drain_outlives_the_worker),
    Guard("drain", "if not lease then return { 'missing' } end\n", "lease = lease or 0\n",
          bounds.test_no_wish_to_drain_outlives_the_worker),
    Guard("forget", "lease and tonumber(lease) > now", "false",
          bounds.test_a_worker_with_a_good_lease_is_forgotten_at_its_own_wish_only),
    Guard("forget", "own_wish ~= '1' and", "",
          bounds.test_a_worker_with_a_good_lease_is_forgotten_at_its_own_wish_only),
    Guard("prune", "ZRANGEBYSCORE', cancelled, '-inf', stamp", "ZRANGEBYSCORE', cancelled, '-inf', '+inf'",
          bounds.test_expired_tombstones_are_pruned_and_live_ones_are_kept),
    Guard("prune", "  redis.call('HDEL', tombstones, unpack(over))\n", "",
          bounds.test_expired_tombstones_are_pruned_and_live_ones_are_kept),
    Guard("prune", "cancelled, '-inf', stamp, 'LIMIT', 0, limit", "cancelled, '-inf', stamp",
          bounds.test_pruning_takes_a_bounded_number_at_a_time),
    Guard("prune", "ZRANGEBYSCORE', index, '-inf', stamp", "ZRANGEBYSCORE', index, '-inf', '+inf'",
          lambda url: bounds.test_an_index_of_ended_jobs_forgets_a_job_when_its_record_expires(url, S.FAILED)),
    # rewind
    Guard("rewind", "if behind <= tonumber(least_ms) then", "if false then",
          lambda url: set_back.test_under_a_good_clock_nothing_is_brought_near(url, 1)),
    Guard("rewind", "if behind <= tonumber(least_ms) then", "if behind <= 0 then",
          lambda url: set_back.test_under_a_good_clock_nothing_is_brought_near(url, 14)),
    Guard("rewind", "workers, '(' .. lease,", "workers, '-inf',",
          set_back.test_the_lease_of_a_worker_that_died_is_over_after_a_lease),
    Guard("rewind", "tonumber(was[2]) and at and at > now then", "tonumber(was[2]) and at then",
          set_back.test_what_was_written_after_the_step_is_as_far_away_as_it_says),
    Guard("rewind", "if was[1] == state and tonumber(was[2]) and at and", "if tonumber(was[2]) and at and",
          set_back.test_what_has_no_record_or_has_ended_gets_nothing_written),
    Guard("rewind", "now + math.max(0, tonumber(was[2]) - at)", "now",
          set_back.test_a_scheduled_job_is_due_after_its_own_delay_again),
    Guard("rewind", "    redis.call('ZADD', key, nearer, jid)\n", "",
          set_back.test_a_cancel_is_due_after_its_own_length_again),
    Guard("rewind", "from + looked - brought", "from + looked", set_back.test_a_look_in_small_steps_misses_none),
    # what the jobs of one call share
    Guard("carry_out", "alike.wish == wish and ", "alike.wish and ",
          settling.test_each_job_of_one_walk_is_told_why_it_itself_was_stopped),
    Guard("carry_out", "alike.n == n and ", "", settling.test_a_walk_goes_on_with_the_history_that_each_job_has),
    Guard("carry_out", " and alike.attempt == attempt then", " then",
          settling.test_two_jobs_with_as_many_lines_and_other_attempts_are_told_apart),
    Guard("carry_out", "facts.n ~= '1' or has_ties", "has_ties",
          settling.test_a_walk_asks_a_job_for_the_hook_that_a_start_has_named),
    Guard("carry_out", " or has_ties(facts.own)) and ties_of(job)", ") and ties_of(job)",
          settling.test_a_job_of_a_key_that_a_walk_stops_leaves_the_key_free),
    Guard("carry_out", "  if has_ties(facts.own) then spare = {} end\n", "",
          settling.test_a_job_is_judged_by_what_it_is_and_not_by_its_parent),
    Guard("carry_out", "facts.jid, facts.args, facts.tag = jid_of(job), nil, nil",
          "facts.jid, facts.tag = jid_of(job), nil",
          lambda url: settling.test_what_was_read_of_one_job_is_not_taken_for_the_next(url, "args.path == 'b'")),
    Guard("carry_out", "facts.jid, facts.args, facts.tag = jid_of(job), nil, nil",
          "facts.jid, facts.args = jid_of(job), nil",
          lambda url: settling.test_what_was_read_of_one_job_is_not_taken_for_the_next(url, "tags.colour == 'b'")),
    Guard("carry_out", "(tied and 2 or 1)", "1",
          settling.test_jobs_with_ties_count_as_two_of_those_that_one_step_may_stop),
    Guard("enqueue", "own.parent or ", "", settling.test_a_child_that_a_walk_stops_is_counted_out_by_its_parent),
    Guard("enqueue", " or own.key or ", " or ", settling.test_a_job_of_a_key_that_a_walk_stops_leaves_the_key_free),
    Guard("enqueue", " or own.on_cancel) and 1", ") and 1",
          settling.test_a_walk_asks_a_job_for_the_hook_that_its_producer_named),
    Guard("finish", "place < (told_at[jid] or 0) or ", "",
          settling.test_the_log_keeps_the_order_of_a_jobs_lines_where_others_had_them_the_other_way_round),
    Guard("carry_out", " or #told[place] == JIDS_IN_ENTRY then", " then",
          settling.test_an_entry_of_the_log_holds_a_bounded_number_of_lines_and_of_jobs),
    Guard("carry_out", " or jids + #sharing > JIDS_IN_ENTRY then", " then",
          settling.test_an_entry_of_the_log_holds_a_bounded_number_of_lines_and_of_jobs),
    Guard("carry_out", "#entry == LINES_IN_ENTRY * 2 or ", "",
          settling.test_an_entry_of_the_log_holds_a_bounded_number_of_lines_and_of_jobs),
    Guard("carry_out", "if not place or place < (told_at[jid] or 0)", "if true or place < (told_at[jid] or 0)",
          settling.test_an_entry_of_the_log_holds_a_bounded_number_of_lines_and_of_jobs),
    # keys that are no records
    *(
        Guard(verb, "local was = fields_of(job, ", "local was = redis.call('HMGET', job, ", no_job(verb))
        for verb in ("renew", "note", "refuse", "finalize", "reclaim", "promote", "expire")
    ),
    *(
        Guard(verb, "local now_at = fields_of(job, ", "local now_at = redis.call('HMGET', job, ", no_job(verb))
        for verb in (V.FINISH, V.RETRY, V.RELEASE)
    ),
    Guard("cancel", "local was = fields_of(job, ", "local was = redis.call('HMGET', job, ",
          lambda url: in_time(no_records.test_a_cancel_does_not_find_it(url))),
    Guard("rewind", "local was = fields_of(job, ", "local was = redis.call('HMGET', job, ",
          lambda url: in_time(no_records.test_a_clock_that_was_set_back_keeps_no_job_beside_it_waiting(url))),
    *(
        Guard(script, "spare, fields_of(job, ", "spare, redis.call('HMGET', job, ",
              lambda url: in_time(no_records.test_a_rule_is_settled_and_counted_without_it(url)))
        for script in ("carry_out", "survey")
    ),
    Guard("expire", "fields_of(key, 'state'", "redis.call('HMGET', key, 'state'",
          lambda url: in_time(no_records.test_what_is_below_it_is_judged_all_the_same(url))),
    Guard("carry_out", "fields_of(key_of(above), 'parent')[1]", "redis.call('HGET', key_of(above), 'parent')",
          lambda url: in_time(no_records.test_what_is_below_it_is_judged_all_the_same(url))),
    Guard("cascade", "fields_of(child, 'policy')[1]", "redis.call('HGET', child, 'policy')",
          lambda url: in_time(no_records.test_a_parent_s_cancel_passes_it_by(url))),
    *(
        Guard("cascade", f"fields_of(parent, 'state', '{second}'", f"redis.call('HMGET', parent, 'state', '{second}'",
              lambda url: in_time(no_records.test_one_that_was_to_pass_a_cancel_on_is_dropped_from_the_list(url)))
        for second in ("cascaded", "parked")
    ),
    Guard("finish", "fields_of(parent, 'state', 'seq', ", "redis.call('HMGET', parent, 'state', 'seq', ",
          lambda url: in_time(no_records.test_a_child_ends_below_it(url))),
    Guard("finish", "fields_of(key_of(was[1]), ", "redis.call('HMGET', key_of(was[1]), ",
          lambda url: in_time(
              no_records.test_a_cancelled_child_that_is_none_any_more_ends_its_parent_for_no_known_reason(url))),
    Guard("enqueue", "fields_of(job, 'state', 'token'", "redis.call('HMGET', job, 'state', 'token'",
          lambda url: in_time(no_records.test_it_gains_no_children(url))),
    Guard("enqueue", "fields_of(job, 'state', 'n', 'attempt')", "redis.call('HMGET', job, 'state', 'n', 'attempt')",
          lambda url: in_time(no_records.test_it_may_be_superseded(url))),
    *(
        Guard(script, "fields_of(parent, 'hook', ", "redis.call('HMGET', parent, 'hook', ",
              lambda url: in_time(no_records.test_a_hook_runs_whose_job_is_none_any_more(url)))
        for script in ("start", "finish")
    ),
    Guard("prune", "string.format('%.0f', now - tonumber(suspect_ms))", "'+inf'",
          bounds.test_suspects_are_forgotten_after_their_time),
]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=str)
async def test_a_test_fails_without_this_guard(redis_url: str, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scripts.load

    def load(name: str, **how: bool) -> scripts.Script:
        script = whole(name, **how)
        return sabotaged(script, guard.old, guard.new) if name == guard.script else script

    monkeypatch.setattr(scripts, "load", load)
    with pytest.raises(AssertionError) as failed:
        await guard.keeper(redis_url)
    assert "times" not in str(failed.value)
