-- The one place where a job becomes terminal. Only now does its record get an expiry.
local ended_index = { succeeded = succeeded, failed = failed, cancelled = cancelled_jobs }
local ended_now = { succeeded = {}, failed = {}, cancelled = {} } -- expiry and jid in turn
local ended_jids = {}
local keep_ms = { succeeded = keep_succeeded_ms, failed = keep_ended_ms, cancelled = keep_ended_ms }
local expiry = {}
for state, ms in pairs(keep_ms) do expiry[state] = digits[now + tonumber(ms)] end
at_end[2] = function()
  for state, members in pairs(ended_now) do
    if #members > 0 then
      redis.call('ZADD', ended_index[state], unpack(members))
      redis.call('HINCRBY', counters, state, #members / 2)
    end
  end
  -- Once for all: few jobs have a timer, and asking each record would cost the others more than this does.
  if #ended_jids > 0 then redis.call('ZREM', timers, unpack(ended_jids)) end
end

local function close(job, fields, n, attempt, state, facts)
  local jid = jid_of(job)
  n = remember(fields, job, n, 'finalized', attempt, facts or state)
  put(fields, 'n', n)
  put(fields, 'state', state)
  put(fields, 'finished', stamp)
  redis.call('HSET', job, unpack(fields))
  redis.call('PEXPIRE', job, keep_ms[state])
  put(ended_now[state], expiry[state], jid)
  ended_jids[#ended_jids + 1] = jid
  redis.call('PUBLISH', done_prefix .. jid, state)
end

-- An accepted cancel has come to its end: the job leaves the cancelled set and the watchdog's list of deadlines, and
-- what cleans up after it is admitted in the same step.
local function close_cancelled(job, fields, n, attempt, ended)
  redis.call('ZREM', cancelled, jid_of(job))
  redis.call('ZREM', deadlines, jid_of(job))
  put(fields, 'ended', ended)
  close(job, fields, n, attempt, 'cancelled', ended)
  clean_up_after(job, attempt, ended)
end
