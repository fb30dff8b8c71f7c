-- Uses unstarted
-- Set by who is told by its answer, and needs no notice. Workers ring none at all: their Redis user may not.
local hushed = notice_prefix == ''

-- Accepts a wish for a live job that nobody has asked to stop. The wish is written before it is announced. Returns the
-- verdict, the state, and the deadline of a job that runs. `own_grace`: '' for the job's own; `ties`: see lib/unstarted.lua,
-- nil where the caller does not know.
local function accept(job, state, n, attempt, wish, own_grace, ties)
  local jid, fields = jid_of(job), nil
  ties = ties or ties_of(job)
  if state == 'scheduled' or state == 'queued' then
    if wish.scope then tally(wish.scope, 'v:cancelled') end
    if state == 'scheduled' then redis.call('ZREM', scheduled, jid) end
    end_unstarted(job, n, attempt, wish, ties)
    -- The entry stays until somebody reads it; the set remembers the jid as long, should the record expire first.
    if state == 'queued' then unread[jid] = true end
    return 'cancelled', 'cancelled'
  end
  if hands_on(ties) then announce_cascade(job) end
  local terms = terms_of(job)
  keep_moment(job, wish, ties)
  local grace = tonumber(own_grace ~= '' and own_grace or terms.grace or default_grace_ms)
  local deadline = string.format('%.0f', now + grace + tonumber(terms.slack or default_slack_ms))
  fields, n = requested(job, n, attempt, wish)
  put(fields, 'n', n)
  put(fields, 'state', 'cancelling')
  put(fields, 'deadline', deadline)
  put(fields, 'cancel_grace', grace)
  if state == 'waiting' then
    keep_as_evidence(job)
    put(fields, 'parked', 'before_start')
    redis.call('ZADD', prefix .. 'waiting', '+inf', jid)
  end
  if wish.scope then
    tally(wish.scope, 'v:signalled')
    tally(wish.scope, 'unfinished')
    put(fields, 'own', 1) -- whoever ends it asks for its scope
  end
  redis.call('HSET', job, unpack(fields))
  redis.call('ZADD', cancelled, '+inf', jid)
  redis.call('ZADD', deadlines, deadline, jid)
  redis.call('HINCRBY', counters, 'signalled', 1)
  if not hushed then redis.call('PUBLISH', notice_prefix .. jid, 'cancel') end
  return 'signalled', 'cancelling', deadline
end
