--[[
  enqueue: admit jobs of one queue, each once.

  Flags    none
  KEYS     events, cancelled, tombstones, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, queues, stream, jobs...
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, call, queue, parent_token, limits, per_job...
           parent_token: '', or that of the attempt that asks for these children; then its parent must run it
           limits: '' for none, or how many may wait in the queue, how many a second may come to it, and of one group (0: any
           number), and the group of those who read the queue
           per job: kind, payload, delay_ms, count of further fields, then name and value of each; the values of
           `expires` and `due_by` are lengths from now (ms) and are written as moments
  Uses     admit, limits
  Answers  {'enqueued', state}     a record was written; queued or scheduled
           {'tombstoned', state}   the jid had been cancelled beforehand: the job is born cancelled
           {'fenced', state}       a standing rule matches it: the job is born cancelled
           {'in_use', state}       another call made a job of this jid, whose record still exists; '': the key is no record
           {'orphan', state, cause}   the parent is not there, has ended or was asked to stop: nothing was written
           {'too_deep', state}     it would be one generation too many: nothing was written
           {'full', waiting}       so many wait in the queue, as many as may: nothing was written
           {'limited', what, ms}   too many come a second, of the queue or group, for so long: nothing was written
  Holds    the same call sent twice writes nothing the second time and is answered as the first was; a job that was
           asked to stop gains no children; the newest job of a key is the only one that is not asked to stop.
]]
local is_moment = { expires = true, due_by = true }
local answers, at, fresh = {}, per_job, 0
local admitted -- the shard's count of admissions, which numbers its jobs

for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  local kind, payload, delay, extra = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local existing, foreign = fields_of(job, 'state', 'call', 'born')
  local own = {}
  for k = at + 4, at + 3 + extra * 2, 2 do own[ARGV[k]] = ARGV[k + 1] end
  local parent = not existing[1] and not foreign and own.parent and parent_of(own.parent)
  if foreign then
    answers[#answers + 1] = { 'in_use', '' }
  elseif existing[1] then
    local same = existing[2] == call
    answers[#answers + 1] = { same and (existing[3] or 'enqueued') or 'in_use', existing[1] }
  elseif parent and not parent.open then
    answers[#answers + 1] = { 'orphan', parent.state, parent.cause }
  elseif parent and parent.depth >= DEEPEST then
    answers[#answers + 1] = { 'too_deep', parent.state }
  elseif limits ~= '' and over_limit(own.group) then
    answers[#answers + 1] = refusal
  else
    -- The set may also name the jid for an unread entry of a cancelled job whose record has expired: no tombstone.
    local mark, wish = redis.call('ZSCORE', cancelled, jid), redis.call('HGET', tombstones, jid)
    local tombstone = mark and wish and tonumber(mark) > now
    admitted = (admitted or tonumber(redis.call('HGET', counters, 'enqueued') or 0)) + 1
    local state = delay > 0 and 'scheduled' or 'queued'
    local fields = { -- what is read most stands first: a small record is searched from its beginning
      'state', state, 'n', '1', 'seq', digits[admitted], 'kind', kind, 'v', WIRE, 'queue', queue, 'payload', payload,
      'call', call, 'enqueued', stamp,
    }
    local first = math.huge -- of its moments
    for k = at + 4, at + 3 + extra * 2, 2 do
      local name, value = ARGV[k], ARGV[k + 1]
      if is_moment[name] then
        value = digits[now + tonumber(value)]
        first = math.min(first, tonumber(value))
      end
      put(fields, name, value)
    end
    if extra > 0 then put(fields, 'own', (own.parent or own.key or own.on_cancel) and 1 or ALONE) end
    if parent then put(fields, 'depth', parent.depth + 1) end
    if #live_rules() > 0 then put(fields, 'cleared', digits[cleared_now()]) end
    local n = remember(fields, job, 0, 'enqueued', 0, kind)
    local fenced = not tombstone and fence(jid, fields)
    if tombstone then
      local cause, reason, source, requested_at = string.match(wish, '^([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t[^\t]*$')
      put(fields, 'born', 'tombstoned')
      put(fields, 'cause', cause)
      put(fields, 'reason', reason)
      put(fields, 'source', source)
      put(fields, 'requested', requested_at)
      redis.call('HDEL', tombstones, jid)
      n = remember(fields, job, n, 'requested', 0, cause, requested_at, source ~= '' and source or nil)
      close_cancelled(job, fields, n, 0, 'before_start')
      answers[#answers + 1] = { 'tombstoned', 'cancelled' }
    elseif fenced then
      put(fields, 'born', 'fenced')
      redis.call('HSET', job, unpack(fields))
      tally(fenced.scope, 'v:cancelled')
      end_unstarted(job, n, 0, fenced)
      answers[#answers + 1] = { 'fenced', 'cancelled' }
    else
      if mark then redis.call('ZREM', cancelled, jid) end
      if wish then redis.call('HDEL', tombstones, jid) end
      if delay > 0 then
        put(fields, 'due', string.format('%.0f', now + delay))
        redis.call('ZADD', scheduled, now + delay, jid)
      else
        put(fields, 'entry', redis.call('XADD', stream, '*', 'jid', jid, 'kind', kind))
        if waiting then waiting = waiting + 1 end
      end
      if first < math.huge then redis.call('ZADD', timers, first, jid) end
      redis.call('HSET', job, unpack(fields))
      answers[#answers + 1] = { 'enqueued', state }
    end
    if parent then
      parent.kids = parent.kids + 1
      if tombstone or fenced then parent.born_over = jid else put(parent.children, digits[admitted], jid) end
    end
    if own.key then supersede(own.key, jid, not tombstone and not fenced) end
    fresh = fresh + 1
  end
  at = at + 4 + extra * 2
end
if fresh > 0 then
  redis.call('SADD', queues, queue)
  redis.call('HINCRBY', counters, 'enqueued', fresh)
end
write_rates()
return conclude(answers)
