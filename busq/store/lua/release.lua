--[[
  release: a worker that stops hands an attempt back; the job is queued again and nothing is spent.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, suspects,
           stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, per_job...
           per job: as lib/settle.lua says
  Uses     settle
  Answers  {'settled', state}   queued again, or cancelled when it had been asked to stop
           {'stale', state}     another attempt owns it, or it has ended already
           {'missing'}          no such job
  Holds    neither failures nor losses grow; a job with an accepted cancel is never delivered again.
]]
return settle_all(jobs, per_job, function(job, fields, n, attempt, _, told)
  put(fields, 'n', remember(fields, job, n, 'handed_back', attempt, told.cause))
  put(fields, 'state', 'queued')
  put(fields, 'entry', redis.call('XADD', stream, '*', 'jid', jid_of(job), 'kind', redis.call('HGET', job, 'kind') or ''))
  redis.call('HSET', job, unpack(fields))
  redis.call('HINCRBY', counters, 'handed_back', 1)
  return 'queued'
end)
