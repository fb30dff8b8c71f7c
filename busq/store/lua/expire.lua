--[[
  expire: jobs whose moment has come are cancelled: those never started in time, and those that have not ended in time.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix
  Uses     scope, moments
  Answers  {'cancelled', state}             it was not running; no attempt will start
           {'signalled', state, deadline}   its worker has until the deadline, as after any cancel
           {'early', left_ms}               its next moment has not come
           {'stale', state}                 no moment of it matters any more: it has ended, or its first cause stands
           {'missing'}                      no such job
  Holds    only a job whose own moment has passed is cancelled; `expires` says nothing about one with an attempt behind
           it; the first cause stands. The timer of a job that is not cancelled here is set anew or dropped.
]]
local answers = {}
for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  heed(job)
  local was = fields_of(job, 'state', 'n', 'attempt', 'expires', 'due_by')
  local state, n, attempt = was[1], tonumber(was[2]), was[3] or 0
  local cause, at = over(was[3], was[4], was[5])
  if not state then
    redis.call('ZREM', timers, jid)
    answers[#answers + 1] = { 'missing' }
  elseif not LIVE[state] or at == math.huge then
    redis.call('ZREM', timers, jid)
    answers[#answers + 1] = { 'stale', state }
  elseif cause then
    redis.call('ZREM', timers, jid)
    answers[#answers + 1] = { accept(job, state, n, attempt, { cause = cause, reason = '', source = '' }, '') }
  else
    redis.call('ZADD', timers, digits[at], jid)
    answers[#answers + 1] = { 'early', digits[at - now] }
  end
end
return conclude(answers)
