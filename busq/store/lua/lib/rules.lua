-- Uses clock, names
-- Beside the live rules stand two marks.
local function count_live()
  return redis.call('HLEN', rules) - redis.call('HEXISTS', rules, 'newest') - redis.call('HEXISTS', rules, 'walked')
end

-- A rule ends. What it has brought about is kept for as long as the record of a cancelled job.
local function retire(number, scope, state)
  redis.call('HDEL', rules, number)
  if count_live() == 0 then redis.call('DEL', rules) end
  local own = prefix .. 'scope:' .. scope
  if redis.call('EXISTS', own) == 0 then return end
  redis.call('HSET', own, 'state', state, 'ended', stamp)
  redis.call('PEXPIRE', own, keep_ended_ms)
  if tonumber(redis.call('HGET', own, 'unfinished') or 0) == 0 then redis.call('PUBLISH', done_prefix .. scope, state) end
end
