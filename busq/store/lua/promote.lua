--[[
  promote: scheduled jobs of one queue whose time has come are queued.

  Flags    none
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix
  Uses     scope
  Answers  {'promoted', state}
           {'early', left_ms}   its time has not come
           {'stale', state}     it is not scheduled any more
           {'missing'}          no such job
  Holds    only a scheduled job whose own due time has passed is queued.
]]
local answers = {}
for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  heed(job)
  local was = fields_of(job, 'state', 'n', 'attempt', 'due', 'kind')
  local state, due = was[1], tonumber(was[4]) or 0
  if not state then
    redis.call('ZREM', scheduled, jid)
    answers[#answers + 1] = { 'missing' }
  elseif state ~= 'scheduled' then
    redis.call('ZREM', scheduled, jid)
    answers[#answers + 1] = { 'stale', state }
  elseif due > now then
    redis.call('ZADD', scheduled, was[4], jid)
    answers[#answers + 1] = { 'early', string.format('%.0f', due - now) }
  else
    local fields = { 'state', 'queued', 'entry', redis.call('XADD', stream, '*', 'jid', jid, 'kind', was[5] or '') }
    put(fields, 'n', remember(fields, job, tonumber(was[2]), 'promoted', was[3] or 0))
    redis.call('HSET', job, unpack(fields))
    redis.call('ZREM', scheduled, jid)
    answers[#answers + 1] = { 'promoted', 'queued' }
  end
end
return conclude(answers)
