-- Uses hook
-- What finishes a job when its children have ended: the last of them, a job of kind <kind>/finalize in its own queue.
local function admit_finalize(parent, n, attempt)
  local was = redis.call('HMGET', parent, 'kind', 'queue', 'payload', 'depth', 'group', 'tags')
  local kind, queue_name, jid = was[1] .. '/finalize', was[2] or '', made_jid()
  local job = key_of(jid)
  local seq = redis.call('HINCRBY', counters, 'enqueued', 1)
  local fields = {
    'v', WIRE, 'kind', kind, 'queue', queue_name, 'payload', was[3] or '', 'enqueued', stamp, 'own', 1, 'seq', seq,
    'finalize_of', jid_of(parent), 'parent', jid_of(parent), 'depth', tonumber(was[4] or 0) + 1, 'state', 'queued',
  }
  if was[5] then put(fields, 'group', was[5]) end
  if was[6] then put(fields, 'tags', was[6]) end
  put(fields, 'entry', redis.call('XADD', prefix .. 'queue:' .. queue_name, '*', 'jid', jid, 'kind', kind))
  put(fields, 'n', remember(fields, job, 0, 'enqueued', 0, kind))
  redis.call('HSET', job, unpack(fields))
  redis.call('ZADD', prefix .. 'children:' .. jid_of(parent), seq, jid)
  redis.call('HSET', parent, 'final', jid, 'open', 1)
end

-- What it is told, after the first ten answers of a start.
local function tell_finalizer(answer, parent)
  local of = redis.call('HMGET', key_of(parent), 'attempt', 'kids', 'kids_failed', 'failed_kids', 'result', 'saved')
  answer[11], answer[12] = 'finalize', parent
  for k = 1, 6 do answer[12 + k] = of[k] or '' end
end
