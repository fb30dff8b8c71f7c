"""
The guards that are taken out, one at a time, and who must notice.

`edits` are exact texts that stand once in their files; a text that does not any more is an error of this list, to be
mended together with the code. `by` is JUDGE (the stage is performed in the sabotaged tree, and the judge must find a
violation) or the tests of which one must fail.
"""

from __future__ import annotations

from dataclasses import dataclass

JUDGE: tuple[str, ...] = ("the judge",)


@dataclass(frozen=True)
class Edit:
    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Sabotage:
    name: str
    says: str
    edits: tuple[Edit, ...]
    by: tuple[str, ...]


def lua(name: str, says: str, script: str, old: str, new: str, *by: str) -> Sabotage:
    return Sabotage(name, says, (Edit(f"busq/store/lua/{script}.lua", old, new),), by or JUDGE)


def python(name: str, says: str, module: str, old: str, new: str, *by: str) -> Sabotage:
    return Sabotage(name, says, (Edit(f"busq/{module}.py", old, new),), by or JUDGE)


SCRIPTS = [
    lua(
        "cancel-only-published", "a cancel is announced and not written down", "lib/accept",
        "  redis.call('HSET', job, unpack(fields))\n  redis.call('ZADD', cancelled, '+inf', jid)\n"
        "  redis.call('ZADD', deadlines, deadline, jid)\n",
        "",
    ),
    lua(
        "no-fence", "whoever says that an attempt has ended is believed", "lib/settle",
        "elseif now_at[2] ~= token or (state ~= 'running'", "elseif (state ~= 'running'",
    ),
    lua(
        "blind-finish", "an attempt settles a job that has ended already", "lib/settle",
        "now_at[2] ~= token or (state ~= 'running' and state ~= 'cancelling') then", "now_at[2] ~= token then",
    ),
    lua(
        "cancel-does-not-win", "what a handler does after its cancel counts", "lib/settle",
        "if state == 'cancelling' and not (outcome", "if state == 'no such state' and not (outcome",
    ),
    lua("no-acknowledgement", "entries of ended attempts stay", "lib/settle", "if #acked > 0 then", "if false then"),
    lua(
        "blind-watchdog", "finalize ends whatever it is called for", "finalize",
        "elseif state ~= 'cancelling' then", "elseif false then",
    ),
    lua(
        "finalize-before-the-deadline", "a watchdog ends a cancel before its time", "finalize",
        "elseif deadline > now then", "elseif false then",
    ),
    lua(
        "enqueue-not-idempotent", "an enqueue that is sent again admits its job again", "enqueue",
        "  elseif existing[1] then\n", "  elseif false then\n",
    ),
    lua(
        "tombstones-ignored", "a jid that was cancelled beforehand is admitted as any other", "enqueue",
        "local tombstone = mark and wish and tonumber(mark) > now", "local tombstone = false",
    ),
    lua(
        "standing-rules-asleep", "a standing rule does not look at what arrives", "lib/admit",
        "if newest == 0 then return nil end", "if true then return nil end",
    ),
    lua(
        "start-whatever-the-record-says", "an entry is enough to start its job", "start",
        "elseif (state == 'queued' and was[2] == entry) or", "elseif was[2] == entry or",
    ),
    lua(
        "start-by-any-entry", "an old entry is as good as the one that the record names", "start",
        "elseif (state == 'queued' and was[2] == entry) or", "elseif state == 'queued' or",
    ),
    lua(
        "start-blind-to-decisions", "a start does not ask what has been decided", "start",
        "heed_known(job, was[10], was[11], true)", "false, false",
    ),
    lua(
        "start-blind-to-what-is-above", "a cancelled parent does not keep its child from starting", "lib/judge",
        "if not facts.parent or depth > DEEPEST then return nil end", "if true then return nil end",
    ),
    lua(
        "attempts-not-counted", "a start does not mint a number of its own", "start",
        "attempt = attempt + 1\n", "attempt = math.max(attempt, 1)\n",
    ),
    lua(
        "reclaim-under-a-good-lease", "a live worker's attempts may be taken over", "reclaim",
        "local alive = lease and tonumber(lease) > now", "local alive = false",
    ),
    lua(
        "promote-twice", "a job that is not scheduled any more is queued again", "promote",
        "elseif state ~= 'scheduled' then", "elseif false then",
    ),
    lua(
        "second-cancel-overwrites", "a later cancel takes the place of the first", "cancel",
        "elseif LIVE[state] then\n", "elseif LIVE[state] or state == 'cancelling' then\n",
    ),
    lua(
        "deadlines-left-behind", "an ended cancel stays on the list of deadlines", "lib/ending",
        "  redis.call('ZREM', deadlines, jid_of(job))\n  put(fields, 'ended', ended)\n",
        "  put(fields, 'ended', ended)\n",
    ),
    lua(
        "records-for-ever", "ended records have no expiry", "lib/ending",
        "  redis.call('PEXPIRE', job, keep_ms[state])\n", "",
    ),
    lua(
        "consumer-deleted-with-its-entries", "a worker leaves the roster with what it holds", "forget",
        "if held > 0 then return", "if false then return",
    ),
    lua(
        "hook-not-durable", "the clean-up is not admitted with its job's ending", "lib/ending",
        "  close(job, fields, n, attempt, 'cancelled', ended)\n  clean_up_after(job, attempt, ended)\n",
        "  close(job, fields, n, attempt, 'cancelled', ended)\n",
    ),
    lua(
        "rules-without-a-cutoff", "a wide cancel hits those who came after its survey", "decide",
        "if cutoff ~= '' and tonumber(cutoff) < tonumber(admitted) then admitted = cutoff end\n", "",
        "tests/store/test_rules.py::test_what_came_after_the_survey_is_not_covered_by_its_decision",
    ),
    lua(
        "renewal-of-a-lost-token", "an attempt that lost its job is told that it runs", "renew",
        "elseif was[2] ~= ARGV[at] or (state", "elseif (state",
        "tests/store/test_attempts.py::test_an_older_token_is_stale_for_every_verb_that_names_one",
    ),
    lua(
        "parent-never-closed", "a cancelled parent gains children", "enqueue",
        "elseif parent and not parent.open then", "elseif false then",
    ),
    lua(
        "nobody-superseded", "the older job of a key goes on", "lib/admit",
        "  if LIVE[was[1]] then\n    local wish = { cause = 'superseded'",
        "  if false then\n    local wish = { cause = 'superseded'",
        "tests/store/test_supersede.py::test_a_newer_job_of_a_key_has_the_older_one_cancelled",
    ),
    lua(
        "too-old-and-started", "a start does not look at the job's moments", "start",
        "local passed = (expires or due_by) and not resent and", "local passed = false and",
        "tests/store/test_moments.py::test_what_is_past_its_moment_does_not_start_although_no_watchdog_came",
    ),
    lua(
        "moment-over-a-cancel", "a moment that passes ends what has a cause already", "expire",
        "elseif not LIVE[state] or at == math.huge then", "elseif at == math.huge then",
        "tests/store/test_moments.py::test_a_users_cancel_that_was_accepted_before_stands",
    ),
    lua(
        "finish-without-children", "a parent ends while its children run", "finish",
        "if outcome == 'succeeded' and (told.finalizer or", "if false and (told.finalizer or",
        "tests/store/test_trees.py::"
        "test_a_finalizer_is_admitted_when_the_last_child_has_ended_and_the_parent_ends_with_it",
    ),
    lua(
        "retries-without-end", "failures are not counted against the retries", "retry",
        "if failures > tonumber(terms_of(job).retries or 0) then", "if false then",
        "tests/store/test_attempts.py::test_a_job_fails_after_as_many_failures_as_it_has_retries_and_one",
    ),
    lua(
        "hand-back-spends", "a job that is handed back has failed once more", "release",
        "put(fields, 'state', 'queued')", "put(fields, 'failures', 1) put(fields, 'state', 'queued')",
        "tests/store/test_attempts.py::test_hand_backs_spend_nothing",
    ),
    lua(
        "refused-entry-stays", "the entry of a cancelled job that is given back stays pending", "refuse",
        "if was[2] ~= entry or state == 'cancelled' then acked[#acked + 1] = entry end", "",
        "tests/store/test_cancels.py::test_a_cancelled_job_that_is_given_back_stays_cancelled_and_its_entry_goes",
    ),
    lua(
        "poison-lost", "an entry that is no job is dropped without a dead letter of its bytes", "bury",
        "'raw', raw,", "'raw', '',",
        "tests/store/test_bounds.py::test_an_entry_that_is_no_job_is_buried_with_its_bytes",
    ),
    lua(
        "note-of-anybody", "a line is written for an attempt that is over", "note",
        "was[2] ~= ARGV[at] or", "",
        "tests/store/test_attempts.py::test_an_older_token_is_stale_for_every_verb_that_names_one",
    ),
    lua(
        "live-tombstones-pruned", "what nobody has come to yet is forgotten", "prune",
        "'ZRANGEBYSCORE', cancelled, '-inf', stamp,", "'ZRANGEBYSCORE', cancelled, '-inf', '(+inf',",
        "tests/store/test_bounds.py::test_expired_tombstones_are_pruned_and_live_ones_are_kept",
    ),
    lua(
        "hooks-undeclared-at-once", "one worker without the hook takes it from all jobs of a kind", "declare",
        "if said and tonumber(string.match(said, '%d+$') or 0) + tonumber(keep_ms) < now then", "if said then",
        "tests/store/test_hooks.py::test_a_kind_loses_its_hook_only_when_no_worker_has_declared_it_for_a_while",
    ),
    lua(
        "revoked-and-alive", "a rule that was revoked goes on", "revoke",
        "retire(was[1], scope, 'revoked')\n", "",
        "tests/store/test_rules.py::test_a_rule_that_was_revoked_stops_nothing_more",
    ),
    lua(
        "walk-forgets-newer-rules", "a rule that is decided during a walk is taken for settled", "carry_out",
        "redis.call('HSET', rules, 'walked', upto)", "redis.call('HSET', rules, 'walked', newest)",
        "tests/store/test_rules.py::test_a_rule_that_is_decided_during_a_walk_gets_one_of_its_own",
    ),
    lua(
        "cascade-stops-early", "one step is taken for all children", "cascade",
        "if #told == 0 and #fallen == 0 then", "if true then",
        "tests/store/test_trees.py::test_a_thousand_children_are_told_in_bounded_steps_by_any_watchdog",
    ),
    lua(
        "look-blind-to-decisions", "a job that was decided to stop is shown as live", "look",
        "    local wish, facts = decided(KEYS[i])\n", "    local wish, facts = nil, {}\n",
        "tests/store/test_rules.py::test_a_look_shows_what_has_been_decided_before_the_record_does",
    ),
    lua(
        "survey-counts-the-ended", "a survey counts what has been decided to stop already", "survey",
        "if wish or not LIVE[facts.state] or", "if",
        "tests/store/test_rules.py::test_a_survey_leaves_out_what_is_being_cancelled_already",
    ),
    lua(
        "rewound-under-a-good-clock", "what was written after the step of a clock is brought near", "rewind",
        "and at and at > now then", "and at then",
        "tests/store/test_set_back.py",
    ),
    lua(
        "drain-of-nobody", "a wish to drain is kept for a worker that is not there", "drain",
        "if not lease then return { 'missing' } end", "lease = lease or '0'",
        "tests/store/test_bounds.py::test_no_wish_to_drain_outlives_the_worker",
    ),
]  # fmt: skip

PROCESSES = [
    python(
        "ack-before-finish", "entries are read as acknowledged", "store/streams",
        '"COUNT", each, *block, "STREAMS", *streams,', '"COUNT", each, *block, "NOACK", "STREAMS", *streams,',
    ),
    python(
        "notice-believed", "a message is a cancel, whatever the record says", "worker/control",
        'self._ask_soon([jid], "pubsub")',
        'self._hear(self._owner.running[jid], RenewAnswer("cancelling", cause="user", left_ms=5000), "pubsub")',
    ),
    python(
        "deaf-beat", "the beat does not look at the answers", "worker/control",
        'if answer.word == "running" or attempt.over:',
        'if heard_by == "beat" or answer.word == "running" or attempt.over:',
    ),
    python(
        "no-resync", "what was said before a subscription was confirmed is never asked for", "worker/control",
        'self._ask_soon([channel[cut:].decode("ascii", "replace") for channel in channels], "resync")', "del cut",
        "tests/runtime/test_cancels.py::test_a_cancel_between_the_start_and_the_subscription_is_not_missed",
    ),
    Sabotage(
        "read-before-subscribed", "a channel is told to be confirmed before it is",
        (
            Edit(
                "busq/store/subscriptions.py",
                "        if channel in self.confirmed:\n            self._fresh.add(channel)\n",
                "        self._fresh.add(channel)\n",
            ),
            Edit(
                "busq/store/subscriptions.py",
                " if channel in self.wanted and channel in self.confirmed)",
                " if channel in self.wanted)",
            ),
        ),
        ("tests/unit/test_subscriptions.py",),
    ),
    python(
        "drain-spends", "a drain counts as a failure of its jobs", "worker/outcome",
        'return Outcome(Verb.RELEASE, "interrupted", cause=str(Cause.SHUTDOWN))',
        'return _failed(attempt, describe(error, traceback_bytes), "error")',
        "tests/runtime/test_drain.py::test_a_drain_hands_unfinished_jobs_back_without_spending_anything",
    ),
    python(
        "lease-protects-from-cancel", "a watchdog finalizes only what a dead process owned", "watchdog/sweep",
        "overdue = [(jid, owner in gone) for jid, owner in jobs]",
        "overdue = [(jid, owner in gone) for jid, owner in jobs if owner in gone]",
        "tests/runtime/test_watchdog.py::test_an_overdue_cancel_is_finalized_by_its_deadline_plus_the_interval",
    ),
    python(
        "lease-without-second-opinion", "a step of the server's clock makes every worker lost", "protocol/judgement",
        "return sighting.lease_ms <= server_now_ms and now - sighting.since >= SILENT_BEATS * beat_s",
        "return sighting.lease_ms <= server_now_ms",
        "tests/unit/test_judgement.py",
        "tests/runtime/test_watchdog.py::test_a_step_of_the_servers_clock_takes_no_job_from_a_live_worker",
    ),
    python(
        "own-entries-forgotten", "a worker does not look for what a lost reply has left", "worker/intake",
        "if unknown := await self._unknown():", "if unknown := [each for each in await self._unknown() if not each]:",
        "tests/fault/test_connections.py::test_a_lost_reply_of_a_read_is_found_among_the_readers_own_entries",
    ),
    python(
        "jobs-taken-without-a-beat", "a worker that Redis does not hear goes on to start jobs", "worker/intake",
        "if entries and not self._beats():", "if False:",
        "tests/runtime/test_unready.py",
    ),
    python(
        "token-forgets", "a swallowed exception is the end of a cancel", "worker/token",
        '        facts = self.observe()\n        if facts is not None:\n            raise Cancelled',
        '        facts, self.facts = self.observe(), None\n        if facts is not None:\n            raise Cancelled',
        "tests/unit/test_token.py",
    ),
    python(
        "shield-of-paper", "a cancel comes in through a shield", "worker/ladder",
        "        if attempt.shields:\n", "        if False:\n",
        "tests/runtime/test_worker.py::test_a_cancel_waits_outside_a_shield",
    ),
    python(
        "any-process-is-the-victim", "a number is signalled, whoever has it now", "worker/executors/victim",
        "return False  # collected already, by whomever", "return True",
        "tests/runtime/test_process_pool.py::test_a_number_that_means_another_process_now_is_not_touched",
    ),
    python(
        "start-time-not-compared", "without pidfds any process is the victim", "worker/executors/victim",
        "return self.started is not None and start_time(self.pid) == self.started", "return True",
        "tests/runtime/test_process_pool.py::test_a_number_that_means_another_process_now_is_not_touched",
    ),
    python(
        "alive-by-number", "a dead owner whose number was given away counts as alive", "store/roster",
        "return _born(self.pid) != self.born", "return not _born(self.pid)",
        "tests/unit/test_roster.py",
    ),
    python(
        "deaf-listener", "nobody notices that a server has fallen silent", "store/listener",
        'raise _LinkLost(f"nothing heard for {self._now() - self._heard_at:.2f} s")', "self._heard_at = self._now()",
        "tests/store/test_listener.py::test_a_frozen_server_is_noticed_in_time_and_all_channels_come_back",
    ),
]  # fmt: skip

SERVERS = [
    python(
        "confirmed-elsewhere", "a confirmation is asked for after the script, on whichever connection is free",
        "store/confirming",
        "answer, *confirmations = await script.run_with(redis, keys, argv, commands)",
        "answer = await script.run(redis, keys, argv)\n"
        "        confirmations = [await redis.execute_command(*words) for words in commands]",
        "tests/fault/test_durability.py::"
        "test_a_connection_that_breaks_before_the_confirmation_confirms_nothing_by_itself",
    ),
    python(
        "confirmed-whatever-was-said", "a write counts as replicated when the server has answered",
        "store/confirming", "ok=replicas >= self._replicas,", "ok=True,",
        "tests/fault/test_durability.py::test_without_any_replica_none_has_it",
    ),
    python(
        "disk-taken-on-trust", "a write counts as on the disk of a server that keeps none",
        "store/confirming",
        'return told.get("appendonly") == "yes" and told.get("appendfsync") == "always"', "return True",
        "tests/fault/test_durability.py::"
        "test_a_server_that_cannot_confirm_its_disk_says_so_before_anything_is_written",
    ),
    python(
        "birth-mark-not-compared", "data with another birth mark is taken for ours", "protocol/lineage",
        "if before.birth and now.birth and before.birth != now.birth:", "if False:",
        "tests/unit/test_lineage.py",
    ),
    python(
        "birth-mark-overwritten", "who found no mark writes its own over that of another", "store/lineage",
        "await redis.hsetnx(key, name, value)", "await redis.hset(key, name, value)",
        "tests/store/test_birth_mark.py",
    ),
    python(
        "history-without-consequence", "a worker that sees other data goes on by what it knew", "worker/control",
        "        self._handlers_loop.call_soon_threadsafe(self._owner.history_changed, unfit)\n", "",
        "tests/runtime/test_server_troubles.py::"
        "test_a_change_of_history_makes_a_worker_look_through_its_entries_and_ask_about_its_jobs",
    ),
    python(
        "queue-made-again-without-a-word", "a group that is gone is made again, and nobody is told", "store/streams",
        "await mark_lost(self._store, shard)  #", "pass  #",
        "tests/store/test_losses.py::test_who_finds_a_group_gone_leaves_word_before_it_makes_it_again",
    ),
    python(
        "lost-queue-not-mended", "jobs whose entries are lost wait for ever", "watchdog/mend",
        "for (queue, owner), jobs in places.items():", "for (queue, owner), jobs in ():",
        "tests/store/test_losses.py::test_jobs_whose_entries_are_lost_are_given_new_ones_once",
    ),
    python(
        "mended-once-and-for-all", "a job that lost its entry while it ran is forgotten", "watchdog/mend",
        "                later = True\n", "",
        "tests/store/test_losses.py::test_a_job_whose_worker_lives_keeps_the_word_until_it_is_looked_at_again",
    ),
    python(
        "full-server-taken-for-a-bad-record", "what a server without memory refuses is taken for a bad job",
        "store/trouble", "    if trouble is None:\n        return BadRecord(",
        "    if trouble is None or trouble is Trouble.OUT_OF_MEMORY:\n        return BadRecord(",
        "tests/runtime/test_server_troubles.py::test_a_server_that_cannot_serve_now_is_not_a_bad_record",
    ),
    python(
        "outage-told-without-end", "each part says at each try that the server is away", "store/outage",
        "            if trouble in self._said:\n                return\n", "",
        "tests/unit/test_trouble.py",
    ),
    Sabotage(
        "overdue-in-its-turn", "cancels are finalized when a pass has done all else",
        (
            Edit(
                "busq/watchdog/watchdog.py",
                "lambda shard: sweepers[shard].finalize()", "lambda shard: asyncio.sleep(0)",
            ),
            Edit(
                "busq/watchdog/watchdog.py",
                "return await sweepers[shard].sweep()",
                "return await sweepers[shard].finalize() or await sweepers[shard].sweep()",
            ),
        ),
        (
            "tests/runtime/test_watchdog.py::"
            "test_looks_for_overdue_cancels_go_on_while_a_pass_takes_as_long_as_it_likes",
        ),
    ),
    python(
        "take-over-without-a-share", "a pass takes over all that a dead worker held", "watchdog/sweep",
        "        for _ in self._steps_in_time(STEPS * 10):\n            if not await self._takeover.step():",
        "        while True:\n            if not await self._takeover.step():",
        "tests/runtime/test_watchdog.py::"
        "test_a_take_over_goes_on_in_the_next_pass_when_its_share_of_one_is_over",
    ),
]  # fmt: skip

SABOTAGES = [*SCRIPTS, *PROCESSES, *SERVERS]
