--[[
  finalize: the watchdog ends cancels of one queue that ran past their deadline.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, suspects, stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, per_job...
           per job: owner_gone ('1': the process of the attempt's owner is known to be gone)
  Uses     scope
  Answers  {'finalized', state, asked_ms}   cancelled by this call, so long after it was asked for
           {'early', left_ms}     its deadline has not come
           {'stale', state}       it is not cancelling any more
           {'missing'}            no such job
  Holds    a good lease does not protect a job from its own cancel. The entry is claimed before it is removed, so
           that the pending list never names an owner who has nothing to say any more. An attempt that nobody saw
           stop is listed as a suspect.
]]
local answers, acked, at = {}, {}, per_job
for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  local was = fields_of(job, 'state', 'n', 'attempt', 'deadline', 'entry', 'owner', 'kind', 'parked', 'requested')
  local state, attempt, deadline = was[1], was[3] or 0, tonumber(was[4]) or 0
  if not state then
    redis.call('ZREM', deadlines, jid)
    answers[#answers + 1] = { 'missing' }
  elseif state ~= 'cancelling' then
    redis.call('ZREM', deadlines, jid)
    answers[#answers + 1] = { 'stale', state }
  elseif deadline > now then
    redis.call('ZADD', deadlines, was[4], jid) -- whoever asks too early asks when it has come
    answers[#answers + 1] = { 'early', string.format('%.0f', deadline - now) }
  else
    -- Parked: its own attempt has ended, and it has waited for its children for as long as it may.
    local ended = was[8] or (ARGV[at] == '1' and 'killed' or 'abandoned')
    if was[5] and string.match(was[5], '^%d+%-%d+$') then
      -- pcall: where somebody removed the stream or its group there is nothing to claim, and the job ends all the same.
      redis.pcall('XCLAIM', stream, group, by, 0, was[5], 'JUSTID')
      acked[#acked + 1] = was[5]
    end
    if ended == 'abandoned' and not was[8] then -- who was parked as such has been listed then
      redis.call('ZADD', suspects, now, jid .. '\t' .. attempt .. '\t' .. (was[6] or '') .. '\t' .. (was[7] or ''))
    end
    close_cancelled(job, {}, tonumber(was[2]), attempt, ended)
    -- The worker, if it lives, learns that nothing of this attempt will be applied, and counts a suspect.
    if not hushed then redis.call('PUBLISH', notice_prefix .. jid, 'finalized') end
    answers[#answers + 1] = { 'finalized', 'cancelled', string.format('%.0f', now - (tonumber(was[9]) or now)) }
  end
  at = at + 1
end
if #acked > 0 then
  redis.call('XACK', stream, group, unpack(acked))
  redis.call('XDEL', stream, unpack(acked))
end
return conclude(answers)
