--[[
  revoke: take a rule back. What it has stopped so far stays stopped.

  Flags    allow-oom
  KEYS     events, rules
  ARGV     now_ms, scope, keep_ended_ms, done_prefix
  Uses     rules
  Answers  {'revoked', state}   it decides nothing any more
           {'stale', state}     it had been settled or revoked before
           {'missing'}          no such scope, or its time after the end is over
]]
local own = prefix .. 'scope:' .. scope
local was = redis.call('HMGET', own, 'number', 'state')
if not was[1] then return { 'missing' } end
if was[2] ~= 'settling' and was[2] ~= 'standing' then return { 'stale', was[2] } end
retire(was[1], scope, 'revoked')
return { 'revoked', 'revoked' }
