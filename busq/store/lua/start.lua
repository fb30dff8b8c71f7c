--[[
  start: a worker takes queued jobs whose entries it holds, and begins an attempt of each.

  Flags    none
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, adopt, kinds, per_kind...
           per kind: kind, retries, max_losses, grace_ms, slack_ms, and timeout_ms, expires_ms, deadline_ms or '-', occasion
           of its on_cancel hook or ''; then per job: entry, which kind (from 0), token
  Uses     scope, moments
  Answers  {'started', attempt, payload}, and where the job has terms of its own or an attempt behind it, further:
           failures, retries, grace_ms, timeout_ms, backoff_ms, backoff_max_ms, saved
           and of a hook: 'hook', then of the job that it cleans up after jid, attempt, cause, reason, source, ended;
           of a finalizer: 'finalize', then of its parent jid, attempt, kids, kids_failed, failed_kids, result, saved
           {'stale', state}    nothing to start behind this entry; it has been removed. Cancelled: perhaps just now, for
                               it was decided, a moment had passed, or its attempt never came to run
           {'gone', state}     the same, when this very call, sent again, had begun what is over by now
           {'other_kind', kind}   the entry lied about its kind; nothing was changed
           {'odd', words}         what is in the record was not written by any busq; nothing was changed
           {'newer', version}, {'unjudged', number}   the record, or a live rule that may cover it, was written by a newer busq
           {'missing'}         no such job; nothing was changed
  Holds    every start mints an attempt (number and token); nothing starts unless its record says queued and names
           this very entry, and no moment of it has passed. `adopt` is set when a worker looks through its own pending
           entries after a lost reply: an attempt that it owns but does not know of runs nowhere, and may begin anew.
]]
local NAMES = with_cleared({ 'state', 'entry', 'v', 'kind', 'token', 'owner', 'attempt', 'payload', 'n', 'own' })
local answers, leftovers, begun = {}, {}, 0
local at = per_kind + tonumber(kinds) * 9
for i = jobs, #KEYS do
  local job = KEYS[i]
  local entry, token = ARGV[at], ARGV[at + 2]
  local kind_at = per_kind + tonumber(ARGV[at + 1]) * 9
  local was = fields_of(job, unpack(NAMES))
  doubt = false
  local changed, judged_now = heed_known(job, was[10], was[11], true)
  if changed then was = redis.call('HMGET', job, unpack(NAMES)) end
  local state, n = was[1], tonumber(was[9])
  local resent = state == 'running' and was[5] == token
  local unknown = adopt == '1' and was[6] == by and was[2] == entry
  local adopted = unknown and state == 'running'
  if not state then
    local mark = redis.call('ZSCORE', cancelled, jid_of(job))
    if mark then
      -- Cancelled before anybody read the entry, and so long ago that the record has expired. A tombstone stays.
      if mark == 'inf' then redis.call('ZREM', cancelled, jid_of(job)) end
      leftovers[#leftovers + 1] = entry
    end
    answers[#answers + 1] = mark and { 'stale', 'cancelled' } or { 'missing' }
  elseif (tonumber(was[3]) or math.huge) > WIRE then
    answers[#answers + 1] = { 'newer', was[3] or '?' }
  elseif doubt and (adopted or state == 'queued' and was[2] == entry) then
    answers[#answers + 1] = { 'unjudged', digits[unjudged] }
  elseif (state == 'queued' and was[2] == entry) or resent or adopted then
    -- Most jobs start once and leave everything to their handler: then there is nothing more to read.
    local own = (was[7] or was[10]) and redis.call('HMGET', job, 'failures', 'retries', 'max_losses', 'grace',
      'timeout', 'backoff', 'backoff_max', 'saved', 'expires', 'due_by', 'hook_of', 'finalize_of') or {}
    if was[4] ~= ARGV[kind_at] then
      answers[#answers + 1] = { 'other_kind', was[4] or '' }
    elseif no_number_in(own, 7) then
      answers[#answers + 1] = { 'odd', 'a record with ' .. no_number_in(own, 7) .. ' for a number' }
    else
      local attempt = tonumber(was[7]) or 0
      local before = was[7] and terms_of(job) or {}
      local expires, due_by = moment_of(job, own[9], ARGV[kind_at + 6]), moment_of(job, own[10], ARGV[kind_at + 7])
      local passed = (expires or due_by) and not resent and over(was[7], expires, due_by)
      local retries, losses = own[2] or before.retries or ARGV[kind_at + 1], own[3] or before.max_losses or ARGV[kind_at + 2]
      local grace = own[4] or before.grace or ARGV[kind_at + 3]
      local timeout = own[5] or before.timeout or ARGV[kind_at + 5]
      local terms = table.concat({ retries, losses, grace, ARGV[kind_at + 4], timeout }, ' ')
      if not passed and not resent then
        attempt = attempt + 1
        local fields = { 'state', 'running', 'attempt', digits[attempt], 'token', token, 'owner', by, 'started', stamp, 'terms', terms }
        if ARGV[kind_at + 8] ~= '' then put(fields, 'on_cancel', ARGV[kind_at + 8]) end
        if judged_now then put(fields, 'cleared', digits[cleared_now()]) end
        put(fields, 'n', remember(fields, job, n, 'started', digits[attempt]))
        if due_by and not own[10] then
          put(fields, 'due_by', due_by)
          redis.call('ZADD', timers, due_by, jid_of(job))
        end
        redis.call('HSET', job, unpack(fields))
        if own[11] then tell_parent(job, 'hook_started', digits[attempt]) end
        begun = begun + 1
      end
      local answer = { 'started', attempt, was[8] }
      if passed then
        end_unstarted(job, n, attempt, { cause = passed, reason = '', source = '' })
        clean_up_late(job, ARGV[kind_at + 8])
        leftovers[#leftovers + 1] = entry
        answer = { 'stale', 'cancelled' }
      elseif was[7] or was[10] then
        for k, value in ipairs({ own[1] or '0', retries, grace, timeout, own[6] or '', own[7] or '', own[8] or '' }) do
          answer[3 + k] = value
        end
        if own[11] then tell_hook(answer, job) elseif own[12] then tell_finalizer(answer, own[12]) end
      end
      answers[#answers + 1] = answer
    end
  elseif (unknown or was[5] == token) and state == 'cancelling' then
    -- It was cancelled before its worker learned, found here or by sending again, that it had started: nothing has run.
    leftovers[#leftovers + 1] = entry
    answers[#answers + 1] = { 'stale', end_attempt(job, {}, n, was[7], 'before_start') }
  elseif (state == 'running' or state == 'cancelling' or state == 'waiting') and was[2] == entry then
    -- The entry of an attempt that lives elsewhere. The group was made anew: under its owner's name it is found if that one dies.
    if was[6] and was[6] ~= by then redis.call('XCLAIM', stream, group, was[6], 0, entry, 'JUSTID') end
    answers[#answers + 1] = { 'stale', state }
  else
    if state == 'cancelled' and was[2] == entry then was_read(jid_of(job)) end
    if state == 'cancelled' and was[4] == ARGV[kind_at] then clean_up_late(job, ARGV[kind_at + 8]) end
    leftovers[#leftovers + 1] = entry
    answers[#answers + 1] = { was[5] == token and 'gone' or 'stale', state }
  end
  at = at + 3
end
if #leftovers > 0 then
  redis.call('XACK', stream, group, unpack(leftovers))
  redis.call('XDEL', stream, unpack(leftovers))
end
if begun > 0 then redis.call('HINCRBY', counters, 'started', begun) end
return conclude(answers)
