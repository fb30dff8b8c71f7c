--[[
  look: records as they are to be shown: together with what has been decided and is not in them yet.

  Flags    no-writes
  KEYS     events, jobs...
  ARGV     now_ms
  Uses     judge
  Answers  one after the other, and none any more once there are so many bytes that others would have to wait: ask again
           {record}                                 fields and values in turn; empty: no such job
           {record, cause, reason, source, scope}   a live job that was decided to stop; scope: '' for none
]]
local MOST_BYTES = 1024 * 1024
local answers, bytes = {}, 0
for i = jobs, #KEYS do
  if bytes > MOST_BYTES then break end
  local record = redis.call('HGETALL', KEYS[i])
  for k = 2, #record, 2 do bytes = bytes + #record[k] end
  local answer = { record }
  if #record > 0 then
    local wish, facts = decided(KEYS[i])
    if wish and LIVE[facts.state] then answer = { record, wish.cause, wish.reason, wish.source, wish.scope or '' } end
  end
  answers[#answers + 1] = answer
end
return answers
