-- Uses tree
-- The one place where a job becomes terminal. Only now does its record get an expiry.
local ended_index = { succeeded = succeeded, failed = failed, cancelled = cancelled_jobs }
local ended_now = { succeeded = {}, failed = {}, cancelled = {} } -- expiry and jid in turn
local ended_jids = {}
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
  local marks = {}
  for jid in pairs(unread) do put(marks, '+inf', jid) end
  if #marks > 0 then redis.call('ZADD', cancelled, unpack(marks)) end
  -- Once for all: few jobs have a timer or wait for children, and asking each record would cost the others more.
  if #ended_jids > 0 then
    for _, set in ipairs({ timers, prefix .. 'waiting' }) do
      if redis.call('EXISTS', set) == 1 then redis.call('ZREM', set, unpack(ended_jids)) end
    end
  end
end

-- The entry of a cancelled job has been read, perhaps by the very call that found the job to be cancelled.
local function was_read(jid)
  unread[jid] = nil
  redis.call('ZREM', cancelled, jid)
end

-- What it writes is in `fields`. `ties`: what else hangs on this job (parent, key, scope, signalled); false: nothing; nil:
-- asked for here.
local function shut(job, fields, state, facts, ties)
  local jid = jid_of(job)
  redis.call('HSET', job, unpack(fields))
  redis.call('PEXPIRE', job, keep_ms[state])
  put(ended_now[state], expiry[state], jid)
  ended_jids[#ended_jids + 1] = jid
  redis.call('PUBLISH', done_prefix .. jid, state)
  if ties == nil then
    local was = redis.call('HMGET', job, 'parent', 'key', 'scope', 'deadline')
    ties = { parent = was[1], key = was[2], scope = was[3], signalled = was[4] }
  end
  if not ties then return end
  local key, scope = ties.key, ties.scope
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
  local open = tonumber(was[1] or 0)
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

-- What is written of a wish that a job stops, and its line of history. `wish` has cause, reason, source and, where it may be
-- sent twice, request; further `scope`, the rule that it comes from, and `of`, the job above that is being cancelled.
local function words_of(wish, attempt)
  local fields = { 'cause', wish.cause, 'reason', wish.reason, 'source', wish.source, 'requested', stamp }
  if wish.request then put(fields, 'request', wish.request) end
  if wish.scope then put(fields, 'scope', wish.scope) end
  local who = wish.source ~= '' and wish.source or nil
  local from = wish.scope or wish.of
  local facts = wish.cause .. (from and ' ' .. from or '') .. (wish.reason ~= '' and ': ' .. wish.reason or '')
  return fields, line_of('requested', attempt, facts, nil, who)
end
local function requested(job, n, attempt, wish)
  above = {}
  n = n + 1
  local fields, line = words_of(wish, attempt)
  put(fields, 'e' .. digits[n], line)
  noted(job, n, line)
  return fields, digits[n]
end

-- What somebody wants to know who ends a job that is not running.
local TIES = { 'open', 'fallen', 'parent', 'key', 'kind', 'on_cancel', 'n', 'attempt' }
local function ties_of(job)
  local was, ties = redis.call('HMGET', job, unpack(TIES)), {}
  for k = 1, #TIES do ties[TIES[k]] = was[k] end
  return ties
end

-- What is written into a job that ends without having run; of one call nearly all have the same, and it is made once.
local alike = {}
local function last_words(n, attempt, wish)
  if alike.wish == wish and alike.n == n and alike.attempt == attempt then return alike end
  alike = { wish = wish, n = n, attempt = attempt }
  alike.fields, alike.asked = words_of(wish, attempt)
  alike.ended = line_of('finalized', attempt, 'before_start')
  put(alike.fields, 'e' .. digits[n + 1], alike.asked)
  put(alike.fields, 'e' .. digits[n + 2], alike.ended)
  put(alike.fields, 'ended', 'before_start')
  put_end(alike.fields, digits[n + 2], 'cancelled')
  return alike
end

-- Nothing of this job is running: it ends here and now, and no attempt of it will start.
end_unstarted = function(job, n, attempt, wish, ties)
  ties = ties or ties_of(job)
  if hands_on(ties) then announce_cascade(job) end
  above = {}
  local words = last_words(n, attempt, wish)
  noted(job, n + 1, words.asked)
  noted(job, n + 2, words.ended)
  ties.scope = wish.scope
  shut(job, words.fields, 'cancelled', 'before_start', ties)
  clean_up_after(job, attempt, 'before_start', ties)
end
