-- Accepts a wish for a live job that nobody has asked to stop: what cancel and expire share. The wish is written before
-- it is announced. Returns the verdict, the state, and the deadline of a job that runs. `own_grace`: '' for the job's own.
local function accept(job, state, n, attempt, wish, own_grace)
  local jid, fields = jid_of(job), nil
  if state == 'scheduled' or state == 'queued' then
    redis.call('ZREM', scheduled, jid)
    end_unstarted(job, n, attempt, wish)
    -- The entry stays until somebody reads it; the set remembers the jid as long, should the record expire first.
    if state == 'queued' then redis.call('ZADD', cancelled, '+inf', jid) end
    return 'cancelled', 'cancelled'
  end
  local terms = terms_of(job)
  local grace = tonumber(own_grace ~= '' and own_grace or terms.grace or default_grace_ms)
  local deadline = string.format('%.0f', now + grace + tonumber(terms.slack or default_slack_ms))
  fields, n = requested(job, n, attempt, wish)
  put(fields, 'n', n)
  put(fields, 'state', 'cancelling')
  put(fields, 'deadline', deadline)
  put(fields, 'cancel_grace', grace)
  redis.call('HSET', job, unpack(fields))
  redis.call('ZADD', cancelled, '+inf', jid)
  redis.call('ZADD', deadlines, deadline, jid)
  redis.call('HINCRBY', counters, 'signalled', 1)
  redis.call('PUBLISH', notice_prefix .. jid, 'cancel')
  return 'signalled', 'cancelling', deadline
end
