-- Uses clock, conditions
-- The live rules, read when somebody is to be judged.
--
-- A rule made by a newer busq may ask what this version cannot judge. Who comes by passes it over, leaves `cleared` below it
-- for those who can, and notes its doubt: a job that such a rule may cover is not started by this version.
--
-- {s}:rules has <number> -> '<cutoff> <at_ms> <until_ms> <version> <condition, JSON>\n<the rest, JSON>', and `newest`; without
-- any live rule it is absent.
local RULES = prefix .. 'rules'
local newest = tonumber(redis.call('HGET', RULES, 'newest') or 0)
local unjudged -- the number of the oldest live rule that this version cannot judge; nil when there is none
local doubt = false -- whether such a rule may cover what was judged since this was last put to false

-- Every live rule, the oldest first: the first cause stands.
local judged -- the rules
local asked = { state = true, seq = true, cleared = true, kind = true, own = true, n = true } -- fields of a record
local wanted -- the same as a list
local function want()
  wanted = {}
  for name in pairs(asked) do wanted[#wanted + 1] = name end
end

local function understand(rule, version, condition, compile)
  assert(version == RULE_VERSION)
  rule.matches = compile(cjson.decode(condition), asked)
end

-- What a rule wants of those that match it; read when it is asked for, since every call reads all live rules.
local function wish_of(rule)
  if not rule.wish then
    local told = cjson.decode(rule.rest)
    rule.wish = { cause = 'scope', scope = told.id, reason = told.reason, source = told.source, grace = told.grace_ms, at = rule.at }
  end
  return rule.wish
end

local function live_rules()
  if judged then return judged end
  judged = {}
  local held = newest > 0 and redis.call('HGETALL', RULES) or {}
  local compile = #held > 0 and conditions()
  for k = 1, #held, 2 do
    local number = string.match(held[k], '^%d+$') and tonumber(held[k])
    if number then
      local cutoff, at, until_ms, version, condition, rest =
        string.match(held[k + 1], '^(%d+) (%d+) (%d+) (%d+) ([^\n]*)\n(.*)$')
      local rule = { number = number, cutoff = tonumber(cutoff) or math.huge, at = tonumber(at) or 0, until_ms = tonumber(until_ms) or 0 }
      rule.rest = rest
      if not pcall(understand, rule, version, condition, compile) then unjudged = math.min(unjudged or number, number) end
      if rule.until_ms > 0 then asked.enqueued = true end
      judged[#judged + 1] = rule
    end
  end
  want()
  table.sort(judged, function(one, other) return one.number < other.number end)
  return judged
end

-- The highest number that a job which was judged here is cleared of.
local function cleared_now() return unjudged and unjudged - 1 or newest end
