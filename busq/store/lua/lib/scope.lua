-- What every script does before it touches a job: whatever has been decided for it is carried out on its record, and the
-- script goes on with the state that it finds then.

-- Returns whether the record was changed.
heed = function(job)
  local wish, facts = decided(job)
  if wish and LIVE[facts.state] then
    accept(job, facts.state, tonumber(facts.n), facts.attempt or 0, wish, wish.grace or '', facts)
    return true
  end
  if newest > tonumber(facts.cleared or 0) and LIVE[facts.state] then redis.call('HSET', job, 'cleared', digits[newest]) end
  return false
end

-- The same for those who have read these two fields anyway: nearly always they say that there is nothing to judge.
-- A job without `own` has no parent.
local function heed_known(job, own, cleared)
  return (own or newest > tonumber(cleared or 0)) and heed(job)
end
