-- Uses clock, conditions
-- The live rules, read when somebody is to be judged.
--
-- A rule made by a newer busq may ask what this version cannot judge. Who comes by passes it over, leaves `cleared` below it
-- for those who can, and notes its doubt: a job that such a rule may cover is not started by this version.
local RULES = prefix .. 'rules' -- <number> -> '<cutoff> <at_ms> <until_ms> <rule, JSON>', and `newest`; absent: no live rule
local newest = tonumber(redis.call('HGET', RULES, 'newest') or 0)
local RULE_VERSION = 1
local unjudged -- the number of the oldest live rule that this version cannot judge; nil when there is none
local doubt = false -- whether such a rule may cover what was judged since this was last put to false

-- Every live rule, the oldest first: the first cause stands.
local judged -- the rules
local asked = { state = true, seq = true, cleared = true, kind = true, parent = true } -- fields of a record
local wanted -- the same as a list
local function want()
  wanted = {}
  for name in pairs(asked) do wanted[#wanted + 1] = name end
end

local function understand(rule, json, compile)
  local told = cjson.decode(json)
  assert((told.v or 1) <= RULE_VERSION)
  for _, words in ipairs({ told.id or {}, told.reason or {}, told.source or {} }) do assert(type(words) == 'string') end
  rule.id = told.id
  rule.wish = { cause = 'scope', scope = told.id, reason = told.reason, source = told.source, grace = told.grace_ms, at = rule.at }
  rule.matches = compile(told.condition, asked)
end

local function live_rules()
  if judged then return judged end
  judged = {}
  local held = newest > 0 and redis.call('HGETALL', RULES) or {}
  local compile = #held > 0 and conditions()
  for k = 1, #held, 2 do
    local number = string.match(held[k], '^%d+$') and tonumber(held[k])
    if number then
      local cutoff, at, until_ms, json = string.match(held[k + 1], '^(%d+) (%d+) (%d+) (.*)$')
      local rule = { number = number, cutoff = tonumber(cutoff) or math.huge, at = tonumber(at) or 0, until_ms = tonumber(until_ms) or 0 }
      if not pcall(understand, rule, json, compile) then unjudged = math.min(unjudged or number, number) end
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
