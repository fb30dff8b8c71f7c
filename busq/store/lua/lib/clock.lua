-- The only clock that is written down: the server's, unless a test hands in a moment of its own.
local now = tonumber(now_ms)
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local stamp = string.format('%.0f', now)
