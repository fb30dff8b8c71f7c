--[[
  renew: a worker's sign of life, its attempts' progress, and what became of them, in one call.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, workers, worker_info,
           jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, worker, lease_ms, info, per_job...
           info is written when it is not ''
           per job: token, progress (0 to 1, or ''), progress_note
  Uses     scope
  Answers  {'running'}
           {'cancelling', cause, reason, source, grace_ms, left_ms, asked_ms}
                left_ms: until the deadline, may be below 0; asked_ms: since the request
           {'stale', state}   another attempt owns the job, or it has ended
           {'missing'}        no such job
  Holds    a worker's lease is the lease of all its attempts; nothing else of a job is written but its progress, and
           what has been decided for it.
]]
redis.call('ZADD', workers, now + tonumber(lease_ms), worker)
if info ~= '' then redis.call('HSET', worker_info, worker, info) end
local NAMES = with_cleared({ 'state', 'token', 'own' })
local answers, at = {}, per_job
hushed = true
for i = jobs, #KEYS do
  local job = KEYS[i]
  local was = fields_of(job, unpack(NAMES))
  if was[1] and heed_known(job, was[3], was[4]) then was = redis.call('HMGET', job, 'state', 'token') end
  local state = was[1]
  if not state then
    answers[#answers + 1] = { 'missing' }
  elseif was[2] ~= ARGV[at] or (state ~= 'running' and state ~= 'cancelling') then
    answers[#answers + 1] = { 'stale', state }
  else
    if ARGV[at + 1] ~= '' then
      redis.call('HSET', job, 'progress', ARGV[at + 1], 'progress_note', ARGV[at + 2])
    end
    if state == 'running' then
      answers[#answers + 1] = { 'running' }
    else
      local wish = redis.call('HMGET', job, 'cause', 'reason', 'source', 'cancel_grace', 'deadline', 'requested')
      local left = string.format('%.0f', (tonumber(wish[5]) or now) - now)
      local asked = string.format('%.0f', now - (tonumber(wish[6]) or now))
      answers[#answers + 1] = { 'cancelling', wish[1] or '', wish[2] or '', wish[3] or '', wish[4] or '', left, asked }
    end
  end
  at = at + 3
end
return conclude(answers)
