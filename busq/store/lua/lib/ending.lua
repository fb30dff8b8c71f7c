-- The one place where a job becomes terminal. Only now does its record get an expiry.
local ended_index = { succeeded = succeeded, failed = failed, cancelled = cancelled_jobs }

local function close(job, fields, n, attempt, state, facts)
  local jid = jid_of(job)
  local keep = tonumber(state == 'succeeded' and keep_succeeded_ms or keep_ended_ms)
  n = remember(fields, job, n, 'finalized', attempt, facts or state)
  put(fields, 'n', n)
  put(fields, 'state', state)
  put(fields, 'finished', stamp)
  redis.call('HSET', job, unpack(fields))
  redis.call('PEXPIRE', job, keep)
  redis.call('ZADD', ended_index[state], now + keep, jid)
  redis.call('HINCRBY', counters, state, 1)
  redis.call('PUBLISH', done_prefix .. jid, state)
end

-- An accepted cancel has come to its end: the job leaves the cancelled set and the watchdog's list of deadlines.
local function close_cancelled(job, fields, n, attempt, ended)
  redis.call('ZREM', cancelled, jid_of(job))
  redis.call('ZREM', deadlines, jid_of(job))
  put(fields, 'ended', ended)
  close(job, fields, n, attempt, 'cancelled', ended)
end
