--[[
  reclaim: the watchdog takes over what a lost worker held in one queue.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, suspects, workers,
           stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, owner, owner_gone, failure, default_max_losses, per_job...
           owner_gone: '1' when the owner's process is known to be gone; failure: the error of a job lost too often
           per job: entry
  Uses     scope
  Answers  {'reclaimed', state}   queued again
           {'lost', state}        failed: too many workers died of it
           {'ended', state}       it had been asked to stop: cancelled
           {'stale', state}       it is not the owner's any more; a leftover entry was removed
           {'alive'}              the owner's lease is good; nothing was changed
           {'missing'}            no such job; nothing was changed
  Holds    a lease that was renewed in time keeps everything as it is. A job that was asked to stop is never
           started again. What was delivered but never started costs no loss.
]]
local lease = redis.call('ZSCORE', workers, owner)
local alive = lease and tonumber(lease) > now
local answers, acked, at = {}, {}, per_job

-- pcall: where somebody removed the stream or its group there is nothing to claim, and the job goes on all the same.
local function claim(entry)
  redis.pcall('XCLAIM', stream, group, by, 0, entry, 'JUSTID')
  acked[#acked + 1] = entry
end

local function requeue(job, fields, n, attempt, facts)
  put(fields, 'n', remember(fields, job, n, 'reclaimed', attempt, facts))
  put(fields, 'state', 'queued')
  put(fields, 'entry', redis.call('XADD', stream, '*', 'jid', jid_of(job), 'kind', redis.call('HGET', job, 'kind') or ''))
  redis.call('HSET', job, unpack(fields))
  redis.call('HINCRBY', counters, 'reclaimed', 1)
  answers[#answers + 1] = { 'reclaimed', 'queued' }
end

for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid, entry = jid_of(job), ARGV[at]
  if not alive then heed(job) end
  local was = fields_of(job, 'state', 'n', 'attempt', 'entry', 'owner', 'losses', 'kind')
  local state, n, attempt = was[1], tonumber(was[2]), was[3] or 0
  local held = was[5] == owner and was[4] == entry
  if alive then
    answers[#answers + 1] = { 'alive' }
  elseif not state then
    local mark = redis.call('ZSCORE', cancelled, jid)
    if mark then acked[#acked + 1] = entry end
    if mark == 'inf' then redis.call('ZREM', cancelled, jid) end -- a tombstone stays
    answers[#answers + 1] = { 'missing' }
  elseif state == 'queued' and was[4] == entry then
    claim(entry)
    requeue(job, {}, n, attempt, 'never started')
  elseif state == 'running' and held then
    claim(entry)
    local losses = (tonumber(was[6]) or 0) + 1
    local fields = { 'losses', losses }
    if losses > tonumber(terms_of(job).max_losses or default_max_losses) then
      put(fields, 'cause', 'lost')
      put(fields, 'error', failure)
      close(job, fields, n, attempt, 'failed', 'lost')
      answers[#answers + 1] = { 'lost', 'failed' }
    else
      requeue(job, fields, n, attempt, owner)
    end
    if is_hook(was[7]) then tell_parent(job, 'hook_ended', attempt, 'lost with ' .. owner) end
  elseif state == 'cancelling' and held then
    claim(entry)
    local ended = owner_gone == '1' and 'killed' or 'abandoned'
    if ended == 'abandoned' then
      redis.call('ZADD', suspects, now, jid .. '\t' .. attempt .. '\t' .. owner .. '\t' .. (was[7] or ''))
    end
    answers[#answers + 1] = { 'ended', end_attempt(job, {}, n, attempt, ended) }
  else
    if was[4] ~= entry or state == 'cancelled' then acked[#acked + 1] = entry end
    if state == 'cancelled' and was[4] == entry then was_read(jid) end
    if state == 'cancelled' then clean_up_late(job, declared(was[7])) end
    answers[#answers + 1] = { 'stale', state }
  end
  at = at + 1
end
if #acked > 0 then
  redis.call('XACK', stream, group, unpack(acked))
  redis.call('XDEL', stream, unpack(acked))
end
return conclude(answers)
