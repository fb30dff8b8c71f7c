--[[
  retry: an attempt failed; the job waits for another one, or has none left.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, suspects,
           stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, per_job...
           per job: as lib/settle.lua says; delay_ms is the backoff
  Uses     settle
  Answers  {'settled', state}   scheduled: another attempt follows; failed: no retries left; cancelled: it had been asked to stop
           {'stale', state}     another attempt owns it, or it has ended already
           {'missing'}          no such job
  Holds    a job with an accepted cancel is never retried.
]]
return settle_all(jobs, per_job, function(job, fields, n, attempt, _, told)
  local failures = (tonumber(redis.call('HGET', job, 'failures')) or 0) + 1
  put(fields, 'error', told.error)
  put(fields, 'failures', failures)
  if failures > tonumber(terms_of(job).retries or 0) then
    put(fields, 'cause', told.cause)
    close(job, fields, n, attempt, 'failed')
    return 'failed'
  end
  local due = string.format('%.0f', now + tonumber(told.delay_ms))
  put(fields, 'n', remember(fields, job, n, 'retried', attempt, told.cause))
  put(fields, 'state', 'scheduled')
  put(fields, 'due', due)
  redis.call('HSET', job, unpack(fields))
  redis.call('HDEL', job, 'entry', 'progress', 'progress_note')
  redis.call('ZADD', scheduled, due, jid_of(job))
  redis.call('HINCRBY', counters, 'retried', 1)
  return 'scheduled'
end)
