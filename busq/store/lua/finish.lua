--[[
  finish: record how attempts ended, each once.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, dead, suspects,
           stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, group, per_job...
           per job: as lib/settle.lua says; outcome is 'succeeded' or 'failed'
  Uses     settle
  Answers  {'settled', state}   this call ended the job; waiting, or cancelling still: it ends when its children have
           {'stale', state}     another attempt owns it, or it has ended already
           {'missing'}          no such job
  Holds    a terminal state is never left; an accepted cancel ends in cancelled, whatever the handler did, unless
           the job was made with late_success="keep" and its handler returned.
]]
return settle_all(jobs, per_job, function(job, fields, n, attempt, outcome, told, own)
  if told.result ~= '' then put(fields, 'result', told.result) end
  if outcome == 'failed' then
    put(fields, 'error', told.error)
    put(fields, 'cause', told.cause)
    put(fields, 'failures', (tonumber(redis.call('HGET', job, 'failures')) or 0) + 1)
    if told.cause == 'bad_payload' then
      local was = redis.call('HMGET', job, 'kind', 'queue', 'payload')
      redis.call('XADD', dead, '*', 'reason', told.cause, 'jid', jid_of(job), 'kind', was[1] or '', 'queue', was[2] or '',
        'payload', was[3] or '', 'at', stamp)
    end
  end
  if outcome == 'succeeded' and (told.finalizer or (own and redis.call('HGET', job, 'kids'))) then
    return await_children(job, fields, n, attempt, told.finalizer)
  end
  local ties = nil
  if not own then ties = false end
  close(job, fields, n, attempt, outcome, nil, ties)
  return outcome
end)
