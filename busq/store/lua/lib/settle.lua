-- Uses scope
-- What finish, retry and release share: each names its attempt, and whoever no longer owns the job is told `stale`
-- and changes nothing but one line of history. The token is the fence; `fin` remembers the attempt that settled,
-- so that the same call sent twice is answered alike.
--
-- `observed` is '1', absent, 'gone': its process was ended by force, or 'runs': the worker has given the attempt up while
-- its code runs on. Nothing claims then that it stopped: it is listed as a suspect, and a cancel ends as abandoned.
--
-- Per job: entry, token, attempt, outcome, count of further facts, then name and value of each: observed, result, error,
-- cause, delay_ms, finalizer ('1': its handler has one), keep ('1': its handler was made with late_success="keep"), hook
-- (how it ended, in words; set for hooks only), and any number of notes (name, ms ago and facts, with tabs between).
-- Most jobs have none of them.
local FIXED = 5
local NOTHING_MORE = { result = '', error = '', cause = '', delay_ms = '0', notes = {} }
local ENDED = { ['1'] = 'confirmed', runs = 'abandoned', gone = 'killed' }

local function read_facts(first, count)
  local told = { result = '', error = '', cause = '', delay_ms = '0', notes = {} }
  for k = first, first + count * 2 - 2, 2 do
    if ARGV[k] == 'note' then told.notes[#told.notes + 1] = ARGV[k + 1] else told[ARGV[k]] = ARGV[k + 1] end
  end
  return told
end

-- The handler's own setting: told by whoever ran it, or kept in the record by a producer that has its code. A cancel came
-- in time, whatever the handler returned, where something was left to stop: open children, which it has stopped too, or
-- a finalizer that would run.
local function keeps_late(job, told)
  local was = redis.call('HMGET', job, 'late', 'open', 'cancelled_kid')
  if told.finalizer or (tonumber(was[2]) or 0) > 0 or was[3] then return false end
  return told.keep == '1' or was[1] == 'keep'
end

local function settle_all(first_job, first_arg, act)
  local answers, acked, at = {}, {}, first_arg
  local NAMES = with_cleared({ 'state', 'token', 'n', 'fin', 'own' })
  for i = first_job, #KEYS do
    local job = KEYS[i]
    local entry, token, attempt, outcome, facts = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
    local told = facts > 0 and read_facts(at + FIXED, facts) or NOTHING_MORE
    local observed = told.observed
    local now_at = fields_of(job, unpack(NAMES))
    if now_at[1] and heed_known(job, now_at[5], now_at[6]) then
      now_at = redis.call('HMGET', job, 'state', 'token', 'n', 'fin', 'own')
    end
    local state, n = now_at[1], tonumber(now_at[3])
    -- Parked: an attempt that somebody else has ended is nobody's any more, although its job waits for its children still.
    if state == 'cancelling' and redis.call('HGET', job, 'parked') then now_at[2] = nil end
    if not state then
      answers[#answers + 1] = { 'missing' }
    elseif now_at[4] == token then
      answers[#answers + 1] = { 'settled', state }
    elseif now_at[2] ~= token or (state ~= 'running' and state ~= 'cancelling') then
      local fields = {}
      put(fields, 'n', remember(fields, job, n, 'late_result', attempt, outcome))
      redis.call('HSET', job, unpack(fields))
      answers[#answers + 1] = { 'stale', state }
    else
      local fields = {}
      put(fields, 'fin', token)
      for _, note in ipairs(told.notes) do
        local name, ago, words = string.match(note, '^([^\t]*)\t([^\t]*)\t(.*)$')
        n = remember(fields, job, n, name, attempt, words, string.format('%.0f', now - tonumber(ago)))
      end
      if observed == 'runs' then
        redis.call('ZADD', suspects, now, jid_of(job) .. '\t' .. attempt .. '\t' .. by .. '\t' .. (redis.call('HGET', job, 'kind') or ''))
      end
      if state == 'cancelling' and not (outcome == 'succeeded' and keeps_late(job, told)) then
        put(fields, 'evidence', outcome)
        if told.result ~= '' then put(fields, 'evidence_result', told.result) end
        if told.error ~= '' then put(fields, 'evidence_error', told.error) end
        state = end_attempt(job, fields, n, attempt, ENDED[observed or ''] or 'completed')
      else
        if state == 'cancelling' then
          redis.call('ZREM', cancelled, jid_of(job))
          redis.call('ZREM', deadlines, jid_of(job))
        end
        state = act(job, fields, n, attempt, outcome, told, now_at[5])
        if told.hook then
          tell_parent(job, 'hook_ended', attempt, told.hook .. (state == 'scheduled' and ', retried' or ''))
        end
      end
      acked[#acked + 1] = entry
      answers[#answers + 1] = { 'settled', state }
    end
    at = at + FIXED + facts * 2
  end
  if #acked > 0 then
    redis.call('XACK', stream, group, unpack(acked))
    redis.call('XDEL', stream, unpack(acked))
  end
  return conclude(answers)
end
