--[[
  cascade: one step of passing a parent's cancel on to its children.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, cascades
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, step
           step: children looked at in one call
  Uses     scope
  Answers  {'idle'}        no cancelled job has children to be told
           {'more', hit}   so many were stopped by this step; call again
  Holds    where it stands is kept in Redis: any number of watchdogs may call this. A child that is touched by anybody
           else meanwhile is judged by them; this finds those that nobody touches.
]]
local jid = redis.call('ZRANGE', cascades, 0, 0)[1]
if not jid then return { 'idle' } end
local parent = key_of(jid)
local was = fields_of(parent, 'state', 'cascaded', 'seq')
local told, fallen = {}, {}
if was[1] == 'cancelling' or was[1] == 'cancelled' or was[1] == 'failed' then
  local from = '(' .. (was[2] or was[3] or 0)
  told = redis.call('ZRANGEBYSCORE', prefix .. 'children:' .. jid, from, '+inf', 'WITHSCORES', 'LIMIT', 0, step)
  if #told == 0 then fallen = redis.call('SPOP', prefix .. 'fallen:' .. jid, step) end
end
-- What is below a job that has failed is passed on to in its turn.
for _, between in ipairs(fallen) do redis.call('ZADD', cascades, now, between) end
local hit = 0
for k = 1, #told, 2 do
  local child = key_of(told[k])
  if fields_of(child, 'policy')[1] == 'abandon' then
    redis.call('ZREM', prefix .. 'children:' .. jid, told[k])
    redis.call('HINCRBY', parent, 'open', -1)
  elseif heed(child) then
    hit = hit + 1
  end
end
if #told == 0 and #fallen == 0 then
  redis.call('ZREM', cascades, jid)
  -- Perhaps it has abandoned the last children that it waited for.
  local now_at = fields_of(parent, 'state', 'parked', 'open', 'n', 'attempt')
  if now_at[1] == 'cancelling' and now_at[2] and tonumber(now_at[3]) == 0 then
    close_cancelled(parent, {}, tonumber(now_at[4]), now_at[5] or 0, now_at[2])
  end
elseif #told > 0 then
  redis.call('HSET', parent, 'cascaded', told[#told])
end
return conclude({ 'more', digits[hit] })
