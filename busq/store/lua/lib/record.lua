-- Records are read with guards first and written last: an error half-way through a script is not rolled back.
local WIRE = 1

-- Every key of a shard begins alike, so the jid is what follows in a job's key.
local jid_at = #events - #'events' + #'job:' + 1
local function jid_of(job) return string.sub(job, jid_at) end

local function put(fields, name, value)
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end

-- One line of history: into the job's record, bounded, and into the bus-wide log. Returns the new count, which
-- the caller writes as `n` together with `fields`.
local function remember(fields, job, n, name, attempt, facts, at, who)
  n = n + 1
  local line = name .. '\t' .. (at or stamp) .. '\t' .. attempt .. '\t' .. (who or by) .. '\t' .. (facts or '')
  fields[#fields + 1] = 'e' .. n
  fields[#fields + 1] = line
  local over = n - tonumber(history_limit)
  if over > 0 then redis.call('HDEL', job, 'e' .. over) end
  redis.call('XADD', events, 'MAXLEN', '~', log_limit, '*', 'jid', jid_of(job), 'event', line)
  return n
end
