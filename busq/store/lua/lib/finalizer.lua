-- Uses hook
-- What finishes a job when its children have ended: the last of them, a job of kind <kind>/finalize in its own queue.
local function admit_finalize(parent)
  local was = redis.call('HMGET', parent, 'kind', 'queue', 'payload', 'depth', 'group', 'tags')
  local of = jid_of(parent)
  local more = { 'finalize_of', of, 'parent', of, 'depth', (tonumber(was[4]) or 0) + 1 }
  if was[5] then put(more, 'group', was[5]) end
  if was[6] then put(more, 'tags', was[6]) end
  local jid, seq = admit_made((was[1] or '') .. '/finalize', was[2] or '', was[3] or '', more)
  redis.call('ZADD', prefix .. 'children:' .. of, seq, jid)
  redis.call('HSET', parent, 'final', jid, 'open', 1)
end

-- What it is told, after the first ten answers of a start.
local function tell_finalizer(answer, parent)
  local of = fields_of(key_of(parent), 'attempt', 'kids', 'kids_failed', 'failed_kids', 'result', 'saved')
  answer[11], answer[12] = 'finalize', parent
  for k = 1, 6 do answer[12 + k] = of[k] or '' end
end
