--[[
  rewind: after the server's clock was set back, what waits for a length of time waits for that from now on.

  Flags    allow-oom
  KEYS     events, workers, deadlines, scheduled
  ARGV     now_ms, by, history_limit, log_limit, least_ms, lease_ms, index, rank, step
           least_ms: a clock that is behind by no more is let be
           index, rank: where to look, 'deadlines' or 'scheduled', from the latest moment on; '' for neither
  Uses     record
  Answers  {'fine'}                        the clock is not behind what has been written
           {'behind', ms, brought, rank}   it is, by so much; so many jobs were brought nearer, and the look goes on at
                                           this rank; -1: nothing is left there
  Holds    nothing comes nearer than the length of time that it was given, and only what was written ahead of now does.
           A lease that nobody could have been given yet is one of now: who lives renews it anyway.
]]
-- Ids of a stream never go down, so the newest of the log remembers the latest moment that the server has seen.
local function latest_ms()
  local told = redis.pcall('XINFO', 'STREAM', events)
  for k = 1, #told, 2 do
    if told[k] == 'last-generated-id' then return tonumber(string.match(told[k + 1], '^%d+')) end
  end
  return 0
end

local time = redis.call('TIME')
local behind = latest_ms() - (time[1] * 1000 + math.floor(time[2] / 1000))
if behind <= tonumber(least_ms) then return { 'fine' } end

local lease = string.format('%.0f', now + tonumber(lease_ms))
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(' .. lease, '+inf', 'LIMIT', 0, step)) do
  redis.call('ZADD', workers, lease, worker)
end

local key, state, field = deadlines, 'cancelling', 'deadline'
if index == 'scheduled' then key, state, field = scheduled, 'scheduled', 'due' end
local from, most = tonumber(rank) or 0, tonumber(step)
local found = index ~= '' and redis.call('ZREVRANGE', key, from, from + most - 1, 'WITHSCORES') or {}
local brought, looked = 0, 0
for k = 1, #found, 2 do
  local jid = found[k]
  if tonumber(found[k + 1]) <= now then break end
  looked = looked + 1
  local job = key_of(jid)
  local was = fields_of(job, 'state', field, 'n', 'attempt')
  local n = tonumber(was[3])
  local line = n and redis.call('HGET', job, 'e' .. digits[n])
  local at = line and tonumber(string.match(line, '^[^\t]*\t(%d+)\t'))
  if was[1] == state and tonumber(was[2]) and at and at > now then
    local nearer = string.format('%.0f', now + math.max(0, tonumber(was[2]) - at))
    local fields = { field, nearer }
    put(fields, 'n', remember(fields, job, n, 'hastened', was[4] or 0, 'the clock of the server was set back'))
    redis.call('HSET', job, unpack(fields))
    redis.call('ZADD', key, nearer, jid)
    brought = brought + 1
  end
end
-- Those that were brought nearer have left their places to those behind them.
local on = looked == most and digits[from + looked - brought] or '-1'
return conclude({ 'behind', string.format('%.0f', behind), digits[brought], on })
