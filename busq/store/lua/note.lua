--[[
  note: lines of history that only the worker of an attempt can write, and what a handler saves.

  Flags    allow-oom
  KEYS     events, jobs...
  ARGV     now_ms, by, history_limit, log_limit, per_job...
           per job: token, attempt, name ('' for none), ago_ms, facts, saved ('' for none)
  Uses     record
  Answers  {'noted', state}
           {'stale', state}   another attempt owns the job, or it has ended; nothing was written
           {'missing'}        no such job
  Holds    no state is changed.
]]
local answers, at = {}, per_job
for i = jobs, #KEYS do
  local job = KEYS[i]
  local was = redis.call('HMGET', job, 'state', 'token', 'n')
  local state = was[1]
  if not state then
    answers[#answers + 1] = { 'missing' }
  elseif was[2] ~= ARGV[at] or (state ~= 'running' and state ~= 'cancelling') then
    answers[#answers + 1] = { 'stale', state }
  else
    local fields = {}
    if ARGV[at + 2] ~= '' then
      local moment = string.format('%.0f', now - tonumber(ARGV[at + 3]))
      put(fields, 'n', remember(fields, job, tonumber(was[3]), ARGV[at + 2], ARGV[at + 1], ARGV[at + 4], moment))
    end
    if ARGV[at + 5] ~= '' then put(fields, 'saved', ARGV[at + 5]) end
    if #fields > 0 then redis.call('HSET', job, unpack(fields)) end
    answers[#answers + 1] = { 'noted', state }
  end
  at = at + 6
end
return conclude(answers)
