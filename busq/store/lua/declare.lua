--[[
  declare: a worker says which of its kinds have an on_cancel hook.

  Flags    allow-oom
  KEYS     hooks
  ARGV     now_ms, keep_ms, per_kind...
           per kind: kind, occasion ('always', 'attempted': not for jobs that never started, '': it has no hook)
  Uses     clock
  Answers  {'declared'}
  Holds    a kind loses its hook only when nobody has declared one for keep_ms: during a rollout, workers with the hook
           and workers without it live side by side.
]]
for at = per_kind, #ARGV, 2 do
  local kind, occasion = ARGV[at], ARGV[at + 1]
  if occasion ~= '' then
    redis.call('HSET', hooks, kind, occasion .. ' ' .. stamp)
  else
    local said = redis.call('HGET', hooks, kind)
    if said and tonumber(string.match(said, '%d+$') or 0) + tonumber(keep_ms) < now then redis.call('HDEL', hooks, kind) end
  end
end
return { 'declared' }
