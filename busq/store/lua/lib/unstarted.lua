-- Uses ending
-- What is written of a wish that a job stops, and how a job ends of which nothing runs.

-- What is written of a wish that a job stops, and its line of history. `wish` has cause, reason, source and, where it may be
-- sent twice, request; further `scope`, the rule that it comes from, and `of`, the job above that is being cancelled.
local function words_of(wish, attempt)
  local fields = { 'cause', wish.cause, 'reason', wish.reason, 'source', wish.source, 'requested', stamp }
  if wish.request then put(fields, 'request', wish.request) end
  if wish.scope then put(fields, 'scope', wish.scope) end
  local who = wish.source ~= '' and wish.source or nil
  local from = wish.scope or wish.of
  local facts = wish.cause .. (from and ' ' .. from or '') .. (wish.reason ~= '' and ': ' .. wish.reason or '')
  return fields, line_of('requested', attempt, facts, nil, who)
end
local function requested(job, n, attempt, wish)
  above = {}
  n = (n or 0) + 1
  local fields, line = words_of(wish, attempt)
  put(fields, 'e' .. digits[n], line)
  noted(job, n, line)
  return fields, digits[n]
end

-- What somebody wants to know who ends a job that is not running.
local TIES = { 'open', 'fallen', 'parent', 'key', 'kind', 'on_cancel', 'n', 'attempt' }
local function ties_of(job)
  local was, ties = redis.call('HMGET', job, unpack(TIES)), {}
  for k = 1, #TIES do ties[TIES[k]] = was[k] end
  return ties
end

-- What is written into a job that ends without having run; of one call nearly all have the same, and it is made once.
local alike = {}
local function last_words(n, attempt, wish)
  if alike.wish == wish and alike.n == n and alike.attempt == attempt then return alike end
  alike = { wish = wish, n = n, attempt = attempt }
  alike.fields, alike.asked = words_of(wish, attempt)
  alike.ended = line_of('finalized', attempt, 'before_start')
  put(alike.fields, 'e' .. digits[n + 1], alike.asked)
  put(alike.fields, 'e' .. digits[n + 2], alike.ended)
  put(alike.fields, 'ended', 'before_start')
  put_end(alike.fields, digits[n + 2], 'cancelled')
  return alike
end

-- A wish that is carried out late comes down to children as of its decision, and other rules may be younger than that.
local function keep_moment(job, wish, ties)
  if wish.at and wish.at < now and hands_on(ties) then redis.call('HSET', job, 'decided', string.format('%.0f', wish.at)) end
end

-- Nothing of this job is running: it ends here and now, and no attempt of it will start.
end_unstarted = function(job, n, attempt, wish, ties)
  n, ties = n or 0, ties or ties_of(job)
  if hands_on(ties) then announce_cascade(job) end
  above = {}
  keep_moment(job, wish, ties)
  local words = last_words(n, attempt, wish)
  noted(job, n + 1, words.asked)
  noted(job, n + 2, words.ended)
  shut(job, words.fields, 'cancelled', 'before_start', ties, wish.scope)
  clean_up_after(job, attempt, 'before_start', ties)
end
