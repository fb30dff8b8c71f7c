--[[
  enqueue: admit jobs of one queue, each once.

  Flags    none
  KEYS     events, cancelled, tombstones, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, queues, stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, call, queue, keep_succeeded_ms, keep_ended_ms, done_prefix,
           parent, parent_token, per_job...
           parent: '' or the jid of the running job whose attempt `parent_token` asks for these children
           per job: kind, payload, delay_ms, count of further fields, then name and value of each; the values of
           `expires` and `due_by` are lengths from now (ms) and are written as moments
  Uses     clock, record, hook, ending
  Answers  {'enqueued', state}     a record was written; queued or scheduled
           {'tombstoned', state}   the jid had been cancelled beforehand: the job is born cancelled
           {'in_use', state}       another call made a job of this jid, whose record still exists
           {'orphan', state, cause}   the parent's attempt is over or was asked to stop: nothing was written
  Holds    the same call sent twice writes nothing the second time and is answered as the first was; an attempt that
           was asked to stop gains no children.
]]
local is_moment = { expires = true, due_by = true }
local answers, at, fresh = {}, per_job, 0
local parents = { 'running', parent_token }
if parent ~= '' then
  -- Not among KEYS, for it is one of a handful of calls that have a parent. It lives in this very shard, as its children do.
  parents = redis.call('HMGET', string.sub(events, 1, -1 - #'events') .. 'job:' .. parent, 'state', 'token', 'cause')
end
local open = parents[1] == 'running' and parents[2] == parent_token
for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  local kind, payload, delay, extra = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local existing = redis.call('HMGET', job, 'state', 'call', 'born')
  if existing[1] then
    local same = existing[2] == call
    answers[#answers + 1] = { same and (existing[3] or 'enqueued') or 'in_use', existing[1] }
  elseif not open then
    answers[#answers + 1] = { 'orphan', parents[1] or '', parents[1] == 'cancelling' and parents[3] or '' }
  else
    -- The set may also name the jid for an unread entry of a cancelled job whose record has expired: no tombstone.
    local mark, wish = redis.call('ZSCORE', cancelled, jid), redis.call('HGET', tombstones, jid)
    local tombstone = mark and wish and tonumber(mark) > now
    local fields = { 'v', WIRE, 'kind', kind, 'queue', queue, 'payload', payload, 'call', call, 'enqueued', stamp }
    local first = math.huge -- of its moments
    for k = at + 4, at + 3 + extra * 2, 2 do
      local name, value = ARGV[k], ARGV[k + 1]
      if is_moment[name] then
        value = digits[now + tonumber(value)]
        first = math.min(first, tonumber(value))
      end
      put(fields, name, value)
    end
    if extra > 0 then put(fields, 'own', 1) end
    local n = remember(fields, job, 0, 'enqueued', 0, kind)
    if tombstone then
      local cause, reason, source, requested = string.match(wish, '^([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t[^\t]*$')
      put(fields, 'born', 'tombstoned')
      put(fields, 'cause', cause)
      put(fields, 'reason', reason)
      put(fields, 'source', source)
      put(fields, 'requested', requested)
      redis.call('HDEL', tombstones, jid)
      n = remember(fields, job, n, 'requested', 0, cause, requested, source ~= '' and source or nil)
      close_cancelled(job, fields, n, 0, 'before_start')
      answers[#answers + 1] = { 'tombstoned', 'cancelled' }
    else
      local state = 'queued'
      if mark then redis.call('ZREM', cancelled, jid) end
      if wish then redis.call('HDEL', tombstones, jid) end
      if delay > 0 then
        state = 'scheduled'
        put(fields, 'due', string.format('%.0f', now + delay))
        redis.call('ZADD', scheduled, now + delay, jid)
      else
        put(fields, 'entry', redis.call('XADD', stream, '*', 'jid', jid, 'kind', kind))
      end
      if first < math.huge then redis.call('ZADD', timers, first, jid) end
      put(fields, 'state', state)
      put(fields, 'n', n)
      redis.call('HSET', job, unpack(fields))
      answers[#answers + 1] = { 'enqueued', state }
    end
    fresh = fresh + 1
  end
  at = at + 4 + extra * 2
end
if fresh > 0 then
  redis.call('SADD', queues, queue)
  redis.call('HINCRBY', counters, 'enqueued', fresh)
end
return conclude(answers)
