-- Uses clock, names
-- Records are read with guards first and written last: an error half-way through a script is not rolled back.
local WIRE = 1

-- The terms of an attempt, written by start as one field: retries, max_losses, grace_ms, slack_ms (beat + force) and
-- timeout_ms ('-' for none). Asked for by those few who need them; nil before the first start.
local function terms_of(job)
  local terms = redis.call('HGET', job, 'terms')
  if not terms then return {} end
  local retries, max_losses, grace, slack, timeout = string.match(terms, '^(%d+) (%d+) (%d+) (%d+) (%S+)$')
  return { retries = retries, max_losses = max_losses, grace = grace, slack = slack, timeout = timeout }
end

-- What a script writes once for all its jobs, when the last one is done; every script ends with conclude(answers).
local at_end = {}
local function conclude(answers)
  for _, write in ipairs(at_end) do write() end
  return answers
end

-- The bus-wide log: an entry holds up to this many lines of one call, each with its jid in front.
local LINES_IN_ENTRY = 8
local lines = {}
at_end[1] = function()
  for first = 1, #lines, LINES_IN_ENTRY do
    local entry = {}
    for k = first, math.min(first + LINES_IN_ENTRY - 1, #lines) do put(entry, digits[k - first + 1], lines[k]) end
    redis.call('XADD', events, 'MAXLEN', '~', log_limit, '*', unpack(entry))
  end
end

-- One line of history: into the job's record, bounded, and into the bus-wide log. Returns the new count, which
-- the caller writes as `n` together with `fields`.
local most = tonumber(history_limit)
local function remember(fields, job, n, name, attempt, facts, at, who)
  n = n + 1
  local line = name .. '\t' .. (at or stamp) .. '\t' .. attempt .. '\t' .. (who or by) .. '\t' .. (facts or '')
  put(fields, 'e' .. digits[n], line)
  local over = n - most
  if over > 0 then redis.call('HDEL', job, 'e' .. digits[over]) end
  lines[#lines + 1] = jid_of(job) .. '\t' .. line
  return digits[n]
end
