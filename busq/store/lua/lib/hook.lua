-- Uses record
-- What cleans up after a cancelled job is a job too, admitted by the script that makes its parent cancelled: of kind
-- <kind>/on_cancel, in queue <queue>/on_cancel. No user's kind or queue has a '/', so no cancel of those reaches it.

-- A line in the history of the job that this hook cleans up after, as long as that one has its record.
local function tell_parent(hook, name, attempt, words)
  local jid = jid_of(hook)
  local parent = key_of(redis.call('HGET', hook, 'hook_of') or '')
  local was = fields_of(parent, 'hook', 'n', 'attempt')
  if was[1] ~= jid then return end
  local fields = {}
  local facts = 'try ' .. attempt .. (words and ': ' .. words or '') .. ' (' .. jid .. ')'
  put(fields, 'n', remember(fields, parent, tonumber(was[2]), name, was[3] or '0', facts))
  redis.call('HSET', parent, unpack(fields))
end

-- What it is told, after the first ten answers of a start.
local function tell_hook(answer, hook)
  local of = redis.call('HMGET', hook, 'hook_of', 'for_attempt', 'for_cause', 'for_reason', 'for_source', 'for_ended')
  answer[11] = 'hook'
  for k = 1, 6 do answer[11 + k] = of[k] or '' end
end

-- A jid of this shard, under any number of shards: the moment, a count, and as its place the shard's own number.
local function made_jid()
  local shard = tonumber(string.match(prefix, '{(%d+)}'))
  local jid
  repeat
    local count = redis.call('HINCRBY', counters, 'hooks', 1)
    jid = string.format('%012x%020x.%04x', now, count, shard)
  until redis.call('EXISTS', key_of(jid)) == 0
  return jid
end

-- Admits a job that a script has made: queued, with further fields. Returns its jid and admission number.
local function admit_made(kind, queue_name, payload, more)
  local jid, seq = made_jid(), redis.call('HINCRBY', counters, 'enqueued', 1)
  local job = key_of(jid)
  local fields = {
    'v', WIRE, 'kind', kind, 'queue', queue_name, 'payload', payload, 'enqueued', stamp, 'own', 1, 'seq', seq,
    'state', 'queued', unpack(more),
  }
  put(fields, 'entry', redis.call('XADD', prefix .. 'queue:' .. queue_name, '*', 'jid', jid, 'kind', kind))
  put(fields, 'n', remember(fields, job, 0, 'enqueued', 0, kind))
  redis.call('HSET', job, unpack(fields))
  return jid, seq
end

local function admit_hook(job)
  local was = redis.call('HMGET', job, 'kind', 'queue', 'payload', 'attempt', 'cause', 'reason', 'source', 'ended', 'saved')
  local queue_name = (was[2] or '') .. '/on_cancel'
  local more = {
    'hook_of', jid_of(job), 'for_attempt', was[4] or 0, 'for_cause', was[5] or '', 'for_reason', was[6] or '',
    'for_source', was[7] or '', 'for_ended', was[8] or '',
  }
  if was[9] then put(more, 'saved', was[9]) end
  redis.call('HSET', job, 'hook', (admit_made(was[1] .. '/on_cancel', queue_name, was[3] or '', more)))
  redis.call('SADD', prefix .. 'queues', queue_name)
end

-- 'attempted' spares the jobs that never started.
local function is_wanted(occasion, attempt)
  return occasion == 'always' or (occasion == 'attempted' and (tonumber(attempt) or 0) > 0)
end

-- What workers have declared of the hook of this kind; nil for none.
local known = {}
local function declared(kind)
  if not kind then return nil end
  if known[kind] == nil then known[kind] = string.match(redis.call('HGET', prefix .. 'hooks', kind) or '', '^%a+') or false end
  return known[kind] or nil
end

-- A job has just become cancelled. What its record says of a hook (its producer, or the worker that started it, had the
-- handler's code) stands before what workers have declared. A hook has none itself.
local function clean_up_after(job, attempt, ended, ties)
  if not ties then
    local was = redis.call('HMGET', job, 'kind', 'on_cancel')
    ties = { kind = was[1], on_cancel = was[2] }
  end
  local kind = ties.kind
  if not kind then return end
  if is_hook(kind) then
    tell_parent(job, 'hook_ended', attempt, 'cancelled, ' .. ended)
    return
  end
  local occasion = ties.on_cancel or declared(kind)
  if is_wanted(occasion, attempt) then admit_hook(job) end
end

-- The same when the entry of a job that was cancelled unread is removed, and nobody could say until now that its kind has
-- a hook: by a start its worker says so, which has the handler's code, else what has been declared meanwhile.
local function clean_up_late(job, occasion)
  if not occasion or occasion == '' then return end
  local was = redis.call('HMGET', job, 'hook', 'on_cancel', 'attempt')
  if not was[1] and not was[2] and is_wanted(occasion, was[3] or 0) then admit_hook(job) end
end
