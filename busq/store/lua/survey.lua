--[[
  survey: one step of looking which live jobs a rule would hit, were it decided now.

  Flags    no-writes
  KEYS     events, scheduled
  ARGV     now_ms, condition, at_ms, cutoff, place, cursor, step
           place: 'scheduled', 'waiting', or a queue with 'queue:' in front; cursor: '0' at first, then as answered
           at_ms: the moment from which ages are counted; cutoff: the admission number up to which jobs count
  Uses     judge
  Answers  {cursor, jid, kind, queue, state, ...}   cursor: '' when this place is done
  Holds    a job that has been decided to stop already is not counted.
]]
live_rules()
local matches = conditions()(cjson.decode(condition), asked)
asked.queue = true
want()

local found = { '' }
local function judge(jid)
  if not jid then return end
  local wish, facts = decided(key_of(jid))
  if wish or not LIVE[facts.state] or is_hook(facts.kind) then return end
  if (tonumber(facts.seq) or 0) > tonumber(cutoff) then return end
  facts.at = tonumber(at_ms)
  if matches(facts) then
    local k = #found
    found[k + 1], found[k + 2], found[k + 3], found[k + 4] = jid, facts.kind, facts.queue or '', facts.state
  end
end

if place == 'scheduled' or place == 'waiting' then
  local scanned = redis.call('ZSCAN', place == 'scheduled' and scheduled or prefix .. 'waiting', cursor, 'COUNT', step)
  for k = 1, #scanned[2], 2 do judge(scanned[2][k]) end
  found[1] = scanned[1] == '0' and '' or scanned[1]
else
  local entries = redis.call('XRANGE', prefix .. place, cursor == '0' and '-' or '(' .. cursor, '+', 'COUNT', step)
  for _, entry in ipairs(entries) do judge(jid_in(entry)) end
  if #entries == tonumber(step) then found[1] = entries[#entries][1] end
end
return found
