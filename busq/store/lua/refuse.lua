--[[
  refuse: a worker gives back queued jobs that it read but cannot or may not start.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, dead, stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, per_job...
           per job: entry, why, delay_ms, most_ms, limit, error, unknown
           limit: refusals after which the job fails, 0 when it does not count; a counted delay doubles up to most_ms
           unknown: '1' for an entry that is pending under the worker's name and of which it runs nothing, as after a
           lost reply: then an attempt of its own is handed back too
  Uses     scope
  Answers  {'refused', state}   queued again, or scheduled after delay_ms
           {'buried', state}    refused for the last time: failed, with a dead letter
           {'stale', state}     the entry no longer stands for the job; it has been removed. Cancelled: perhaps just now,
                                because its attempt, which never came to run, had been asked to stop
           {'missing'}          no such job
  Holds    no attempt is minted and nothing is spent; only the job whose record names this entry is touched.
]]
local answers, acked, at = {}, {}, per_job
for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  local entry, why, delay, most = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local limit, failure = tonumber(ARGV[at + 4]), ARGV[at + 5]
  heed(job)
  local was = fields_of(job, 'state', 'entry', 'n', 'attempt', 'refusals', 'kind', 'queue', 'payload', 'owner')
  local state, n, attempt = was[1], tonumber(was[3]), was[4] or 0
  local own = ARGV[at + 6] == '1' and was[9] == by and was[2] == entry
  if not state then
    answers[#answers + 1] = { 'missing' }
  elseif own and state == 'cancelling' then
    acked[#acked + 1] = entry
    answers[#answers + 1] = { 'stale', end_attempt(job, {}, n, attempt, 'before_start') }
  elseif own and state == 'running' then
    acked[#acked + 1] = entry
    local fields = { 'state', 'queued', 'entry', redis.call('XADD', stream, '*', 'jid', jid, 'kind', was[6] or '') }
    put(fields, 'n', remember(fields, job, n, 'handed_back', attempt, why))
    redis.call('HSET', job, unpack(fields))
    if is_hook(was[6]) then tell_parent(job, 'hook_ended', attempt, 'handed_back') end
    answers[#answers + 1] = { 'refused', 'queued' }
  elseif was[2] ~= entry or state ~= 'queued' then
    -- A running attempt holds its own entry; any other entry stands for nothing.
    if was[2] ~= entry or state == 'cancelled' then acked[#acked + 1] = entry end
    if state == 'cancelled' and was[2] == entry then was_read(jid) end
    if state == 'cancelled' then clean_up_late(job, declared(was[6])) end
    answers[#answers + 1] = { 'stale', state }
  else
    local fields = {}
    local refusals = (tonumber(was[5]) or 0) + (limit > 0 and 1 or 0)
    if limit > 0 then
      put(fields, 'refusals', refusals)
      delay = math.min(most, delay * 2 ^ (refusals - 1))
    end
    acked[#acked + 1] = entry
    if limit > 0 and refusals > limit then
      put(fields, 'cause', why)
      put(fields, 'error', failure)
      redis.call('XADD', dead, '*', 'reason', why, 'jid', jid, 'kind', was[6] or '', 'queue', was[7] or '', 'payload', was[8] or '',
        'at', stamp)
      close(job, fields, n, attempt, 'failed', why)
      if is_hook(was[6]) then tell_parent(job, 'hook_ended', attempt, 'failed: ' .. why) end
      answers[#answers + 1] = { 'buried', 'failed' }
    else
      put(fields, 'n', remember(fields, job, n, 'handed_back', attempt, why))
      if delay > 0 then
        put(fields, 'state', 'scheduled')
        put(fields, 'due', string.format('%.0f', now + delay))
        redis.call('ZADD', scheduled, now + delay, jid)
      else
        put(fields, 'entry', redis.call('XADD', stream, '*', 'jid', jid, 'kind', was[6] or ''))
      end
      redis.call('HSET', job, unpack(fields))
      if delay > 0 then redis.call('HDEL', job, 'entry') end
      answers[#answers + 1] = { 'refused', delay > 0 and 'scheduled' or 'queued' }
    end
  end
  at = at + 7
end
if #acked > 0 then
  redis.call('XACK', stream, group, unpack(acked))
  redis.call('XDEL', stream, unpack(acked))
end
return conclude(answers)
