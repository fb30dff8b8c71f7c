-- Uses clock, conditions
-- What has been decided for a job and is not in its record yet: by a live rule, or because a job above it is being
-- cancelled. Nothing is written here.
--
-- Whoever changes a record judges it first (lib/scope.lua), so a record stands as it did when a rule was decided until
-- somebody judges it: judged late, it gives the same answer as at that moment. `cleared` is the highest number of a rule
-- that has found nothing against it.
-- {s}:rules has <number> -> '<cutoff> <at_ms> <until_ms> <condition, JSON>\n<the rest, JSON>', and `newest`; without any live
-- rule it is absent.
local RULES = prefix .. 'rules'
local LIVE = { scheduled = true, queued = true, running = true, waiting = true }
local newest = tonumber(redis.call('HGET', RULES, 'newest') or 0)

local function read_rule(number, text)
  local rule = { number = tonumber(number) }
  local cutoff, at, until_ms, condition, rest = string.match(text, '^(%d+) (%d+) (%d+) ([^\n]*)\n(.*)$')
  rule.cutoff, rule.at, rule.until_ms = tonumber(cutoff), tonumber(at), tonumber(until_ms)
  rule.condition, rule.rest = cjson.decode(condition), rest
  return rule
end

-- What a rule wants of those that match it; read when it is asked for, since every call reads all live rules.
local function wish_of(rule)
  if not rule.wish then
    local rest = cjson.decode(rule.rest)
    rule.wish = { cause = 'scope', scope = rest.id, reason = rest.reason, source = rest.source, grace = rest.grace_ms, at = rule.at }
  end
  return rule.wish
end

-- Every live rule, the oldest first: the first cause stands.
local judged -- the rules
local asked = { state = true, seq = true, cleared = true, kind = true, own = true, n = true } -- fields of a record
local wanted -- the same as a list
local function want()
  wanted = {}
  for name in pairs(asked) do wanted[#wanted + 1] = name end
end

local function live_rules()
  if judged then return judged end
  judged = {}
  local held = newest > 0 and redis.call('HGETALL', RULES) or {}
  local compile = #held > 0 and conditions()
  for k = 1, #held, 2 do
    if string.match(held[k], '^%d+$') then
      local rule = read_rule(held[k], held[k + 1])
      rule.matches = compile(rule.condition, asked)
      judged[#judged + 1] = rule
    end
  end
  want()
  table.sort(judged, function(one, other) return one.number < other.number end)
  return judged
end

-- One table serves job after job, since making one is dear; that of a job with ties is kept by whoever asked for it, who
-- goes on to ask about others.
local spare = {}
local function facts_of(job)
  live_rules()
  local facts, was = spare, redis.call('HMGET', job, unpack(wanted))
  facts.jid, facts.args, facts.tag = jid_of(job), nil, nil
  for k = 1, #wanted do facts[wanted[k]] = was[k] or nil end
  if has_ties(facts.own) then spare = {} end
  return facts
end

local function matching(facts, born)
  if newest <= tonumber(facts.cleared or 0) then return nil end
  local cleared, seq = tonumber(facts.cleared or 0), tonumber(facts.seq or 0)
  for _, rule in ipairs(live_rules()) do
    if rule.number > cleared and (born and rule.until_ms > now or not born and seq <= rule.cutoff) then
      facts.at = born and now or rule.at
      if rule.matches(facts) then return wish_of(rule) end
    end
  end
end

local decided

local function from_above(facts, depth)
  if not facts.parent or depth > DEEPEST then return nil end
  local key = key_of(facts.parent)
  if above[key] == nil then
    local was = redis.call('HMGET', key, 'state', 'reason', 'source', 'requested', 'seq')
    local wish = false
    if was[1] == 'cancelling' or was[1] == 'cancelled' then
      wish = { reason = was[2] or '', source = was[3] or '', at = tonumber(was[4] or 0) }
    elseif LIVE[was[1]] or was[1] == 'failed' then
      wish = decided(key, depth + 1) or false
    end
    above[key] = wish
      and { cause = 'parent', of = facts.parent, reason = wish.reason, source = wish.source, at = wish.at, seq = was[5] }
  end
  local wish = above[key]
  -- A job admitted later than its child only has the jid of its parent, whose record has expired.
  if not wish or tonumber(wish.seq or 0) > tonumber(facts.seq or 0) then return nil end
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
