"""
Every guard in the scripts is needed: taken out, at least one test fails.

A guard is taken out of the source that the loader hands over; then a test that keeps it is run, and must fail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import pytest

from busq.protocol.cancel import Cause, Ended
from busq.protocol.states import State, Verb
from busq.store import scripts
from tests.store import test_attempts as attempts
from tests.store import test_bounds as bounds
from tests.store import test_cancels as cancels
from tests.store import test_hooks as hooks
from tests.store import test_moments as moments
from tests.store import test_transitions as transitions

S, V = State, Verb
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


ACKED = "redis.call('XACK', stream, group, unpack(acked))\n"
DELETED = "redis.call('XDEL', stream, unpack(acked))\n"
LATE = "keeps_late(job, told)"
KEPT = f"outcome == 'succeeded' and {LATE}"
HASTENED = "if nearer < tonumber(deadline) then"
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
    Guard("cancel", "elseif state == 'cancelled' then\n    if again", "elseif false then\n    if again", table(V.CANCEL, S.CANCELLED)),
    Guard("cancel", "  redis.call('PUBLISH', notice_prefix .. jid, 'cancel')\n",
          "  redis.call('PUBLISH', notice_prefix .. jid, 'other')\n",
          cancels.test_the_notice_rings_after_the_request_is_written),
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
    *(
        Guard(verb, "    redis.call('ZREM', timers, unpack(ended_jids))\n", "", timer_goes(how))
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
    Guard("start", "if state == 'cancelled' then was_read(jid_of(job)) end", "", unread("start",
          False)),
    Guard("start", "  redis.call('XDEL', stream, unpack(leftovers))\n", "", unread("start", False)),
    Guard("start", "  redis.call('XACK', stream, group, unpack(leftovers))\n", "", unread("start", False)),
    # finish, retry, release
    *(
        guard
        for verb in attempts.SETTLING
        for guard in (
            Guard(verb, "elseif now_at[4] == token then", "elseif false then",
                  again(verb if verb != V.RETRY else "retry")),
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
    Guard("finish", "told.finalizer or tonumber(was[2] or 0) > 0", "tonumber(was[2] or 0) > 0", left("finalizer")),
    Guard("finish", "tonumber(was[2] or 0) > 0 or was[3] then", "was[3] then", left("open child")),
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
    # renew, note
    Guard("renew", "was[2] ~= ARGV[at] or", "", table(V.RENEW, S.RUNNING)),
    Guard("renew", "or (state ~= 'running' and state ~= 'cancelling') then", "then",
          cancels.test_a_good_lease_does_not_protect_a_job_from_its_own_cancel),
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
    Guard("refuse", "if state == 'cancelled' then was_read(jid) end", "",
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
    Guard("promote", "elseif tonumber(was[4]) > now then", "elseif false then", table(V.PROMOTE, S.SCHEDULED)),
    # finalize
    Guard("finalize", "elseif state ~= 'cancelling' then", "elseif false then", table(V.FINALIZE, S.CANCELLED)),
    Guard("finalize", "elseif tonumber(was[4]) > now then", "elseif false then",
          cancels.test_nobody_finalizes_before_the_deadline),
    Guard("finalize", "ARGV[at] == '1'", "true", gone("finalize", False)),
    Guard("finalize", "ARGV[at] == '1'", "false", gone("finalize", True)),
    Guard("finalize", "if ended == 'abandoned' then", "if true then", gone("finalize", True)),
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
    Guard("reclaim", "if state == 'cancelled' then was_read(jid) end", "", unread("reclaim",
          False)),
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
    Guard("cancel", "  redis.call('HSET', job, 'hook', jid)\n", "", admitted("queued")),
    Guard("cancel", "  redis.call('SADD', prefix .. 'queues', queue_name)\n", "", admitted("queued")),
    Guard("cancel", "'for_attempt', was[4] or 0", "'for_attempt', 0", admitted("handed back")),
    Guard("cancel", "if is_wanted(occasion, attempt) then", "if true then", no_hook("queued")),
    Guard("cancel", "(occasion == 'attempted' and tonumber(attempt) > 0)", "occasion == 'attempted'",
          opted_out("scheduled")),
    Guard("cancel", "(occasion == 'attempted' and tonumber(attempt) > 0)", "false", opted_out("handed back")),
    Guard("enqueue", "(occasion == 'attempted' and tonumber(attempt) > 0)", "occasion == 'attempted'",
          opted_out("tombstoned")),
    Guard("cancel", "was[2] or declared(", "declared(", said("always", "", 1)),
    Guard("cancel", "was[2] or declared(", "declared(", said("attempted", "always", 0)),
    Guard("cancel", "if is_hook(was[1]) then", "if false then", hook_cancelled(False)),
    Guard("finish", "if is_hook(was[1]) then", "if false then", hook_cancelled(True)),
    Guard("cancel", "redis.call('EXISTS', key_of(jid)) == 0", "true",
          hooks.test_a_hook_takes_no_jid_that_is_in_use),
    Guard("finish", "if was[9] then put(fields, 'saved', was[9]) end", "", hooks.test_a_hook_is_told_of_its_job),
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
    # bury, forget, prune
    Guard("bury", "if #pending == 0 then", "if false then",
          lambda url: bounds.test_an_entry_that_is_no_job_is_buried_with_its_bytes(url, {b"jid": b"j"})),
    Guard("forget", "if held > 0 then", "if false then", bounds.test_a_worker_that_holds_entries_is_never_forgotten),
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
    Guard("prune", "string.format('%.0f', now - tonumber(suspect_ms))", "'+inf'",
          bounds.test_suspects_are_forgotten_after_their_time),
]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=str)
async def test_a_test_fails_without_this_guard(redis_url: str, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scripts.load

    def load(name: str, *, flags_line: bool = True) -> scripts.Script:
        script = whole(name, flags_line=flags_line)
        return sabotaged(script, guard.old, guard.new) if name == guard.script else script

    monkeypatch.setattr(scripts, "load", load)
    with pytest.raises(AssertionError) as failed:
        await guard.keeper(redis_url)
    assert "times" not in str(failed.value)
