--[[
  decide: write down that everything which matches a rule shall stop: the jobs admitted so far, and with a standing rule
  later ones too. Its cost does not depend on how many there are.

  Flags    allow-oom
  KEYS     events, counters, rules
  ARGV     now_ms, by, scope, condition, rule, cutoff, until_ms, most
           condition: JSON; rule: JSON with id, reason, source, grace_ms and what else its readers want
           cutoff: the admission number up to which jobs match, '' for the newest of now
           until_ms: the moment up to which later arrivals match as well, 0 for never
  Uses     rules
  Answers  {'decided', number}   also when the same is sent again
           {'crowded', live}     there are as many live rules as may be; nothing was written
  Holds    a rule is judged by lib/judge.lua from here on, whoever touches a job; nothing of a job is written here.
]]
local own = prefix .. 'scope:' .. scope
local before = redis.call('HGET', own, 'number')
if before then return { 'decided', before } end
local live = count_live()
if live >= tonumber(most) then return { 'crowded', digits[live] } end
local number = redis.call('HINCRBY', counters, 'rules', 1)
local admitted = redis.call('HGET', counters, 'enqueued') or '0'
if cutoff ~= '' and tonumber(cutoff) < tonumber(admitted) then admitted = cutoff end
redis.call('HSET', own, 'number', number, 'state', 'settling', 'at', stamp, 'by', by, 'rule', rule, 'until', until_ms)
local stored = table.concat({ admitted, stamp, until_ms, RULE_VERSION, condition }, ' ') .. '\n' .. rule
redis.call('HSET', rules, number, stored, 'newest', number)
announce('rule')
return { 'decided', digits[number] }
