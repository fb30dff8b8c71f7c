-- Uses accept, judge
-- What every script does before it touches a job: whatever has been decided for it is carried out on its record, and the
-- script goes on with the state that it finds then.

-- Returns whether the record was changed; and, to who writes the record next and says so with `later`, that it is to write
-- `cleared` as well; third, of a job that was stopped, whether its ties were asked for: that one cost twice as much.
heed = function(job, later)
  local wish, facts = decided(job)
  if wish and LIVE[facts.state] then
    -- One line of history is that of its admission: it has never started.
    local ties = (facts.n ~= '1' or has_ties(facts.own)) and ties_of(job) or facts
    accept(job, facts.state, tonumber(ties.n), ties.attempt or 0, wish, wish.grace or '', ties)
    return true, nil, ties ~= facts
  end
  local judged_now = cleared_now() > (tonumber(facts.cleared) or 0) and LIVE[facts.state]
  if judged_now and not later then redis.call('HSET', job, 'cleared', digits[cleared_now()]) end
  return false, judged_now
end

-- Fields that a script reads of each job, with `cleared` as the last where it matters: each field costs its share.
local function with_cleared(names)
  if newest > 0 then names[#names + 1] = 'cleared' end
  return names
end

-- As heed, for those who have read these two fields anyway: nearly always they say that there is nothing to judge.
-- A job without `own` has no parent; most of those with it have none either, and a whole judgement is dear.
local function heed_known(job, own, cleared, later)
  if newest <= (tonumber(cleared) or 0) and not (has_ties(own) and redis.call('HGET', job, 'parent')) then return false end
  return heed(job, later)
end
