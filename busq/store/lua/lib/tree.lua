-- Uses finalizer, tally
-- Parents and children: what a job's ending means for the job above it. All of a tree lives in one shard.
--
-- A parent counts its open children in `open`; {s}:children:<jid> names them. One whose handler has returned waits for
-- them, in state `waiting`; one that is being cancelled waits as `cancelling`, with `parked` saying how its attempt ended.
-- Its finalizer is the last of its children (lib/finalizer.lua).
local close, close_cancelled -- lib/ending.lua
local end_unstarted -- lib/unstarted.lua
local heed -- lib/scope.lua
local FAILED_LISTED = 100

-- What a handler returned is no result any more: its job does not end in success.
local function keep_as_evidence(job)
  local result = redis.call('HGET', job, 'result')
  redis.call('HSET', job, 'evidence', 'succeeded', 'evidence_result', result or '')
  redis.call('HDEL', job, 'result')
end

-- Every child of a parent whose handler has returned has ended. Returns the state that the parent is in now.
local function end_waiting(parent, n, attempt)
  local was = redis.call('HMGET', parent, 'cancelled_kid', 'finalizer', 'final')
  if was[1] then
    local why = fields_of(key_of(was[1]), 'cause', 'reason', 'source')
    local reason = 'its child ' .. was[1] .. ' was cancelled' .. ((why[2] or '') ~= '' and ': ' .. why[2] or '')
    keep_as_evidence(parent)
    end_unstarted(parent, n, attempt, { cause = why[1] or 'user', reason = reason, source = why[3] or '' })
    return 'cancelled'
  elseif was[2] and not was[3] then
    admit_finalize(parent)
    return 'waiting'
  end
  close(parent, {}, n, attempt, 'succeeded')
  return 'succeeded'
end

-- The finalizer has ended: so does its parent, as it did.
local function end_with_final(parent, final, state, n, attempt)
  if state == 'failed' then
    local fields = { 'cause', 'finalize', 'error', redis.call('HGET', final, 'error') or '' }
    keep_as_evidence(parent)
    close(parent, fields, n, attempt, 'failed', 'finalize')
  elseif state == 'cancelled' then
    redis.call('HSET', parent, 'cancelled_kid', jid_of(final))
    end_waiting(parent, n, attempt)
  else
    close(parent, {}, n, attempt, 'succeeded')
  end
end

-- A child has failed while children of its own are open. They go on, and what comes down from above reaches them still, as
-- long as its record is there: whoever passes a cancel on to the children of its parent asks for this one's too.
local function hand_on_past(child, parent)
  local fallen = prefix .. 'fallen:' .. jid_of(parent)
  redis.call('SADD', fallen, jid_of(child))
  redis.call('PEXPIRE', fallen, keep_ended_ms)
  redis.call('HSET', parent, 'fallen', 1)
end
local function hands_on(ties) return (tonumber(ties.open) or 0) > 0 or ties.fallen end

-- A child has become terminal. One that its parent has abandoned is not among its children any more.
local function child_ended(child, parent_jid, state)
  local jid, parent, siblings = jid_of(child), key_of(parent_jid), prefix .. 'children:' .. parent_jid
  local seq = redis.call('ZSCORE', siblings, jid)
  if not seq then return end
  redis.call('ZREM', siblings, jid)
  local was = fields_of(parent, 'state', 'seq', 'open')
  -- Its record has expired, and perhaps another job has its jid.
  if not tonumber(was[3]) or (tonumber(was[2]) or 0) > tonumber(seq) then return end
  -- A waiting parent may end now, and what has been decided for it stands before that.
  if was[1] == 'waiting' then heed(parent) end
  was = redis.call('HMGET', parent, 'state', 'n', 'attempt', 'final', 'parked', 'failed_kids')
  local open, n, attempt = redis.call('HINCRBY', parent, 'open', -1), tonumber(was[2]), was[3] or 0
  if state == 'cancelled' then
    redis.call('HSETNX', parent, 'cancelled_kid', jid)
  elseif state == 'failed' and was[4] ~= jid then
    local failures = redis.call('HINCRBY', parent, 'kids_failed', 1)
    if failures <= FAILED_LISTED then redis.call('HSET', parent, 'failed_kids', (was[6] and was[6] .. ' ' or '') .. jid) end
    if (tonumber(redis.call('HGET', child, 'open')) or 0) > 0 then hand_on_past(child, parent) end
  end
  if open > 0 then return end
  if was[1] == 'waiting' and was[4] == jid then
    end_with_final(parent, child, state, n, attempt)
  elseif was[1] == 'waiting' then
    end_waiting(parent, n, attempt)
  elseif was[1] == 'cancelling' and was[5] then
    close_cancelled(parent, {}, n, attempt, was[5])
  end
end

-- A handler has returned, and its job has children or a finalizer: it ends when they have. Returns its state now.
local function await_children(job, fields, n, attempt, finalizer)
  local open = tonumber(redis.call('HGET', job, 'open')) or 0
  if finalizer then put(fields, 'finalizer', 1) end
  if open > 0 or finalizer then
    n = tonumber(remember(fields, job, n, 'waiting', attempt, digits[open] .. ' children'))
    put(fields, 'n', digits[n])
  end
  put(fields, 'state', 'waiting')
  redis.call('HSET', job, unpack(fields))
  redis.call('HDEL', job, 'entry')
  redis.call('ZADD', prefix .. 'waiting', now, jid_of(job))
  return open > 0 and 'waiting' or end_waiting(job, n, attempt)
end

-- Told to every worker: attempts below a cancelled job are to be asked about.
local function announce_cascade(job)
  redis.call('ZADD', prefix .. 'cascades', now, jid_of(job))
  announce('tree')
end
