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

-- The bus-wide log. Jobs that have the same line in one call share it, '<jid> <jid>...\t<line>', as far as each job's lines
-- keep their order; an entry holds up to so many lines and jids.
local LINES_IN_ENTRY, JIDS_IN_ENTRY = 8, 32
local told = {} -- in the order in which they came: the line, and who shares it
local told_as = {} -- by line: its latest place in there
local told_at = {} -- by jid: the place of its latest line
local function tell(jid, line)
  local place = told_as[line]
  if not place or place < (told_at[jid] or 0) or #told[place] == JIDS_IN_ENTRY then
    place = #told + 1
    told[place] = { line = line }
    told_as[line] = place
  end
  local sharing = told[place]
  sharing[#sharing + 1] = jid
  told_at[jid] = place
end
at_end[1] = function()
  local entry, jids = {}, 0
  local function write()
    if jids > 0 then redis.call('XADD', events, 'MAXLEN', '~', log_limit, '*', unpack(entry)) end
    entry, jids = {}, 0
  end
  for _, sharing in ipairs(told) do
    if #entry == LINES_IN_ENTRY * 2 or jids + #sharing > JIDS_IN_ENTRY then write() end
    put(entry, digits[#entry / 2 + 1], table.concat(sharing, ' ') .. '\t' .. sharing.line)
    jids = jids + #sharing
  end
  write()
end

local function line_of(name, attempt, facts, at, who)
  return name .. '\t' .. (at or stamp) .. '\t' .. attempt .. '\t' .. (who or by) .. '\t' .. (facts or '')
end

-- A job has the n-th line of its history. The record is bounded.
local most = tonumber(history_limit)
local function noted(job, n, line)
  local over = n - most
  if over > 0 then redis.call('HDEL', job, 'e' .. digits[over]) end
  tell(jid_of(job), line)
end

-- One line of history: into the job's record, bounded, and into the bus-wide log. Returns the new count, which
-- the caller writes as `n` together with `fields`.
local function remember(fields, job, n, name, attempt, facts, at, who)
  n = (n or 0) + 1
  local line = line_of(name, attempt, facts, at, who)
  put(fields, 'e' .. digits[n], line)
  noted(job, n, line)
  return digits[n]
end
