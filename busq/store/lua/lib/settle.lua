-- What finish, retry and release share: each names its attempt, and whoever no longer owns the job is told `stale`
-- and changes nothing but one line of history. The token is the fence; `fin` remembers the attempt that settled,
-- so that the same call sent twice is answered alike.
--
-- `observed` is '1', '0', or 'runs': the worker has given the attempt up while its code runs on. Nothing claims then that
-- it stopped: it is listed as a suspect, and a cancel ends as abandoned.
--
-- Per job: entry, token, attempt, outcome, observed, result, error, cause, delay_ms, notes, then for each note: name, ago_ms, facts
local FIXED = 10

local function settle_all(first_job, first_arg, act)
  local answers, acked, at = {}, {}, first_arg
  for i = first_job, #KEYS do
    local job = KEYS[i]
    local entry, token, attempt, outcome, observed = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    local result, failure, cause, delay = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], tonumber(ARGV[at + 8])
    local notes = tonumber(ARGV[at + 9])
    local now_at = redis.call('HMGET', job, 'state', 'token', 'n', 'fin')
    local state, n = now_at[1], tonumber(now_at[3])
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
      for k = 0, notes - 1 do
        local note = at + FIXED + k * 3
        local moment = string.format('%.0f', now - tonumber(ARGV[note + 1]))
        n = remember(fields, job, n, ARGV[note], attempt, ARGV[note + 2], moment)
      end
      if observed == 'runs' then
        redis.call('ZADD', suspects, now, jid_of(job) .. '\t' .. attempt .. '\t' .. by .. '\t' .. redis.call('HGET', job, 'kind'))
      end
      if state == 'cancelling' and not (outcome == 'succeeded' and redis.call('HGET', job, 'late') == 'keep') then
        put(fields, 'evidence', outcome)
        if result ~= '' then put(fields, 'evidence_result', result) end
        if failure ~= '' then put(fields, 'evidence_error', failure) end
        local ended = observed == '1' and 'confirmed' or 'completed'
        close_cancelled(job, fields, n, attempt, observed == 'runs' and 'abandoned' or ended)
        state = 'cancelled'
      else
        if state == 'cancelling' then
          redis.call('ZREM', cancelled, jid_of(job))
          redis.call('ZREM', deadlines, jid_of(job))
        end
        state = act(job, fields, n, {
          attempt = attempt, outcome = outcome, result = result, failure = failure, cause = cause, delay = delay,
        })
      end
      acked[#acked + 1] = entry
      answers[#answers + 1] = { 'settled', state }
    end
    at = at + FIXED + notes * 3
  end
  if #acked > 0 then
    redis.call('XACK', stream, group, unpack(acked))
    redis.call('XDEL', stream, unpack(acked))
  end
  return conclude(answers)
end
