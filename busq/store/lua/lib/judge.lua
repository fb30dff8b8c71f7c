-- Uses live_rules
-- What has been decided for a job and is not in its record yet: by a live rule, or because a job above it is being
-- cancelled. Nothing is written here.
--
-- Whoever changes a record judges it first (lib/scope.lua), so a record stands as it did when a rule was decided until
-- somebody judges it: judged late, it gives the same answer as at that moment. `cleared` is the highest number of a rule
-- that has found nothing against it.
local LIVE = { scheduled = true, queued = true, running = true, waiting = true }

-- One table serves job after job, since making one is dear; that of a job with ties is kept by whoever asked for it, who
-- goes on to ask about others.
local spare = {}
local function facts_of(job)
  live_rules()
  local facts, was = spare, fields_of(job, unpack(wanted))
  facts.jid, facts.args, facts.tag = jid_of(job), nil, nil
  for k = 1, #wanted do facts[wanted[k]] = was[k] or nil end
  if has_ties(facts.own) then spare = {} end
  return facts
end

-- The moment as of which a rule judges a job, nil when it does not cover it. A job that came under a standing rule is
-- judged as it is born, and later only when whoever admitted it could not judge that rule.
local function covered_at(rule, facts, born)
  if born then return rule.until_ms > now and now or nil end
  if (tonumber(facts.seq) or 0) <= rule.cutoff then return rule.at end
  local since = tonumber(facts.enqueued) or 0
  return rule.at <= since and since < rule.until_ms and since or nil
end

local function matching(facts, born)
  local cleared = tonumber(facts.cleared) or 0
  if newest <= cleared then return nil end
  for _, rule in ipairs(live_rules()) do
    facts.at = rule.number > cleared and covered_at(rule, facts, born)
    if facts.at and not rule.matches then
      doubt = true
    elseif facts.at and rule.matches(facts) then
      return wish_of(rule)
    end
  end
end

local decided
local doubted = {} -- keys of parents of which nobody here can say whether they are to stop

local function from_above(facts, depth)
  if not facts.parent or depth > DEEPEST then return nil end
  local key, before = key_of(facts.parent), doubt
  if above[key] == nil then
    doubt = false
    local was = fields_of(key, 'state', 'reason', 'source', 'requested', 'seq', 'decided')
    local wish = false
    if was[1] == 'cancelling' or was[1] == 'cancelled' then
      wish = { reason = was[2] or '', source = was[3] or '', at = tonumber(was[6] or was[4]) or 0 }
    elseif LIVE[was[1]] or was[1] == 'failed' then
      wish = decided(key, depth + 1) or false
    end
    above[key] = wish
      and { cause = 'parent', of = facts.parent, reason = wish.reason, source = wish.source, at = wish.at, seq = was[5] }
    doubted[key] = doubt
  end
  doubt = before or doubted[key]
  local wish = above[key]
  -- A job admitted later than its child only has the jid of its parent, whose record has expired.
  if not wish or (tonumber(wish.seq) or 0) > (tonumber(facts.seq) or 0) then return nil end
  return wish
end

-- The wish that stands against a job, or nil; and the facts that it was judged by. A job that ended in failure has none
-- of its own, and hands on what comes from above.
decided = function(job, depth)
  local facts = facts_of(job)
  if is_hook(facts.kind) then return nil, facts end
  local wish = LIVE[facts.state] and matching(facts)
  if has_ties(facts.own) and (LIVE[facts.state] or facts.state == 'failed') then
    local was = redis.call('HMGET', job, 'parent', 'policy')
    facts.parent = was[1] or nil
    local down = not was[2] and from_above(facts, depth or 1)
    if down and (not wish or down.at < wish.at) then wish = down end -- the first cause stands
  end
  return wish or nil, facts
end
