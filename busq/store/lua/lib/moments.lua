-- Uses clock, names
-- The two moments of a job: `expires`, past which one that has never been started does not start, and `due_by`, by which
-- it is to have ended. Returns the cause to end it with, or nil and the next of the two that matters (math.huge for none).
local function over(started, expires, due_by)
  expires, due_by = not started and tonumber(expires) or math.huge, tonumber(due_by) or math.huge
  local first = math.min(expires, due_by)
  if first > now then return nil, first end
  return first == due_by and 'deadline' or 'expired'
end

-- A moment as a start finds it: the job's own, else what the handler says (a length, '-' for none), from its enqueueing.
local function moment_of(job, own, length)
  if own or length == '-' then return own end
  return digits[(tonumber(redis.call('HGET', job, 'enqueued')) or now) + length]
end

-- The first so many fields are numbers where they are there. Whoever wrote them otherwise was not busq: nothing is done
-- with such a record. Returns what stands in the first that is none, nil for none.
local function no_number_in(fields, count)
  for k = 1, count do
    local said = fields[k] or '0'
    if not string.match(said, '^%d+$') then return string.sub(said, 1, 40) end
  end
end
