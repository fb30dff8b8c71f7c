--[[
  carry_out: one step of the walk that settles what rules have decided: every job of the shard is judged once.

  Flags    allow-oom
  KEYS     events, cancelled, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, queues, rules, walk
  ARGV     now_ms, by, history_limit, log_limit, default_grace_ms, default_slack_ms, keep_succeeded_ms, keep_ended_ms,
           notice_prefix, done_prefix, step, hits
           step: jobs looked at in one call; hits: jobs stopped in one call, of a queue; one with ties counts as two
  Uses     scope, rules
  Answers  {'idle'}             nothing is to be settled
           {'more', hit}        so many jobs were stopped by this step; call again
           {'settled', hit}     the same, and the walk is over
           idle, too: of the rules that are left, the oldest was made by a newer busq, and this version cannot judge it
  Holds    one walk settles every rule that was there when it began, and where it stands is kept in Redis: any number of
           watchdogs may call this. A job that moves meanwhile is judged by whoever moves it.
]]
local walked = tonumber(redis.call('HGET', rules, 'walked') or 0)
if newest == 0 then
  redis.call('DEL', walk) -- whatever it was for has been revoked
  return { 'idle' }
end
local was = redis.call('HMGET', walk, 'upto', 'places', 'place', 'cursor', 'count')
if not was[1] then
  -- Standing rules whose time is over leave here.
  for _, rule in ipairs(live_rules()) do
    if rule.matches and rule.number <= walked and rule.until_ms <= now then retire(rule.number, wish_of(rule).scope, 'settled') end
  end
  if cleared_now() <= walked then return { 'idle' } end
  local places, total = {}, redis.call('ZCARD', scheduled) + redis.call('ZCARD', prefix .. 'waiting')
  for _, queue in ipairs(redis.call('SMEMBERS', queues)) do
    if not is_hook(queue) then
      places[#places + 1] = queue
      total = total + redis.call('XLEN', prefix .. 'queue:' .. queue)
    end
  end
  table.sort(places)
  was = { digits[cleared_now()], table.concat(places, '\n'), '-1', '0' }
  redis.call('HSET', walk, 'upto', was[1], 'places', was[2], 'place', -1, 'cursor', '0', 'examined', 0, 'total', total)
end

local upto, place, cursor = tonumber(was[1]), tonumber(was[3]), was[4]
live_rules()
if upto > cleared_now() then return { 'idle' } end
local places = {}
for name in string.gmatch(was[2], '[^\n]+') do places[#places + 1] = name end

local hit, spent, examined = 0, 0, 0
local function judge(jid)
  examined = examined + 1
  if not jid then return end
  local changed, _, tied = heed(key_of(jid))
  if changed then hit, spent = hit + 1, spent + (tied and 2 or 1) end
end

-- Places -1 and 0 are the sorted sets of scheduled and waiting jobs, the others are streams. A scan of a set that changes
-- meanwhile finds every member that was there all the time.
local over
if place <= 0 then
  local found = redis.call('ZSCAN', place == -1 and scheduled or prefix .. 'waiting', cursor, 'COUNT', step)
  for k = 1, #found[2], 2 do judge(found[2][k]) end
  cursor, over = found[1], found[1] == '0'
else
  -- Where most are hit, no more entries are read than may be hit.
  local count, entries = tonumber(was[5] or hits), {}
  if places[place] then
    entries = redis.call('XRANGE', prefix .. 'queue:' .. places[place], cursor == '0' and '-' or '(' .. cursor, '+', 'COUNT', count)
  end
  local left = #entries
  for _, entry in ipairs(entries) do
    if spent >= tonumber(hits) then break end
    left = left - 1
    judge(jid_in(entry))
    cursor = entry[1]
  end
  over = left == 0 and #entries < count
  redis.call('HSET', walk, 'count', hit * 2 > examined and hits or step)
end
if over then place, cursor = place + 1, '0' end
redis.call('HINCRBY', walk, 'examined', examined)
local answer = { 'more', digits[hit] }
if place > #places and place > 0 then
  redis.call('DEL', walk)
  write_tallies() -- who says whether a scope is done reads them
  for _, rule in ipairs(live_rules()) do
    if rule.number <= upto then
      local scope = wish_of(rule).scope
      if rule.until_ms > now then
        redis.call('HSET', prefix .. 'scope:' .. scope, 'state', 'standing')
        redis.call('PUBLISH', done_prefix .. scope, 'standing')
      else
        retire(rule.number, scope, 'settled')
      end
    end
  end
  if redis.call('EXISTS', rules) == 1 then redis.call('HSET', rules, 'walked', upto) end
  answer[1] = 'settled'
else
  redis.call('HSET', walk, 'place', place, 'cursor', cursor)
end
return conclude(answer)
