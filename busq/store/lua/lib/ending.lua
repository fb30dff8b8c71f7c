-- Uses tree
-- The one place where a job becomes terminal. Only now does its record get an expiry.
local ended_index = { succeeded = succeeded, failed = failed, cancelled = cancelled_jobs }
local ended_now = { succeeded = {}, failed = {}, cancelled = {} } -- expiry and jid in turn
local ended_jids = {}
local endings = {} -- of cancelled jobs: how many ended how
local unread = {} -- jids of cancelled jobs whose entries nobody has read, as keys
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
  for how, count in pairs(endings) do redis.call('HINCRBY', counters, 'ended:' .. how, count) end
  local marks = {}
  for jid in pairs(unread) do put(marks, '+inf', jid) end
  if #marks > 0 then redis.call('ZADD', cancelled, unpack(marks)) end
  -- Once for all: few jobs have a timer or wait for children, and asking each record would cost the others more.
  if #ended_jids > 0 then
    if redis.call('EXISTS', timers) == 1 then redis.call('ZREM', timers, unpack(ended_jids)) end
    if redis.call('EXISTS', prefix .. 'waiting') == 1 then redis.call('ZREM', prefix .. 'waiting', unpack(ended_jids)) end
  end
end

-- The entry of a cancelled job has been read, perhaps by the very call that found the job to be cancelled.
local function was_read(jid)
  unread[jid] = nil
  redis.call('ZREM', cancelled, jid)
end

-- What it writes is in `fields`. `ties`: what else hangs on this job (parent, key, signalled); false: nothing; nil: asked
-- for here, and its scope with them.
local function shut(job, fields, state, facts, ties, scope)
  local jid = jid_of(job)
  redis.call('HSET', job, unpack(fields))
  redis.call('PEXPIRE', job, keep_ms[state])
  put(ended_now[state], expiry[state], jid)
  ended_jids[#ended_jids + 1] = jid
  if state == 'cancelled' then endings[facts] = (endings[facts] or 0) + 1 end
  redis.call('PUBLISH', done_prefix .. jid, state)
  if ties == nil then
    local was = redis.call('HMGET', job, 'parent', 'key', 'scope', 'deadline')
    ties, scope = { parent = was[1], key = was[2], signalled = was[4] }, was[3]
  end
  if not ties then return end
  local key = ties.key
  if key and redis.call('HGET', prefix .. 'keyed', key) == jid then redis.call('HDEL', prefix .. 'keyed', key) end
  if scope and ties.signalled then tally(scope, 'unfinished', -1) end
  if scope then tally(scope, 'e:' .. (state == 'cancelled' and facts or state)) end
  if ties.parent then child_ended(job, ties.parent, state) end
end

local function put_end(fields, n, state)
  put(fields, 'n', n)
  put(fields, 'state', state)
  put(fields, 'finished', stamp)
end

close = function(job, fields, n, attempt, state, facts, ties)
  put_end(fields, remember(fields, job, n, 'finalized', attempt, facts or state), state)
  shut(job, fields, state, facts, ties)
end

-- An accepted cancel has come to its end: the job leaves the cancelled set and the watchdog's list of deadlines, and
-- what cleans up after it is admitted in the same step.
close_cancelled = function(job, fields, n, attempt, ended)
  redis.call('ZREM', cancelled, jid_of(job))
  redis.call('ZREM', deadlines, jid_of(job))
  put(fields, 'ended', ended)
  close(job, fields, n, attempt, 'cancelled', ended)
  clean_up_after(job, attempt, ended)
end

-- The attempt of a job that is being cancelled has ended. Where children are open the job ends when they have, or at its
-- deadline. Returns its state now.
local function end_attempt(job, fields, n, attempt, ended)
  local was = redis.call('HMGET', job, 'open', 'parked')
  local open = tonumber(was[1]) or 0
  if was[2] then return 'cancelling' end -- a start that was sent again
  if open == 0 then
    close_cancelled(job, fields, n, attempt, ended)
    return 'cancelled'
  end
  put(fields, 'n', remember(fields, job, n, 'waiting', attempt, digits[open] .. ' children'))
  put(fields, 'parked', ended)
  redis.call('HSET', job, unpack(fields))
  redis.call('HDEL', job, 'entry')
  redis.call('ZADD', prefix .. 'waiting', '+inf', jid_of(job)) -- counted by its score: nothing of it runs
  return 'cancelling'
end
