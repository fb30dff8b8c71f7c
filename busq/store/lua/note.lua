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
  Holds    no state is changed. A line that was written and is sent again, for its answer was lost, is not written twice.
]]
local LATELY = 4 -- lines that others may have written in between

local function stands(job, n, name, attempt, facts)
  local fields = {}
  for back = 0, LATELY - 1 do -- from a fixed number of steps: who wrote `n` may not have been busq
    if n > back then fields[#fields + 1] = 'e' .. digits[n - back] end
  end
  if #fields == 0 then return false end
  for _, line in ipairs(redis.call('HMGET', job, unpack(fields))) do
    local its, rest = string.match(line or '', '^([^\t]*)\t[^\t]*\t(.*)$')
    if its == name and rest == attempt .. '\t' .. by .. '\t' .. facts then return true end
  end
  return false
end

local answers, at = {}, per_job
for i = jobs, #KEYS do
  local job = KEYS[i]
  local was = fields_of(job, 'state', 'token', 'n')
  local state = was[1]
  if not state then
    answers[#answers + 1] = { 'missing' }
  elseif was[2] ~= ARGV[at] or (state ~= 'running' and state ~= 'cancelling') then
    answers[#answers + 1] = { 'stale', state }
  else
    local fields = {}
    local name, attempt, facts = ARGV[at + 2], ARGV[at + 1], ARGV[at + 4]
    if name ~= '' and not stands(job, tonumber(was[3]) or 0, name, attempt, facts) then
      local moment = string.format('%.0f', now - tonumber(ARGV[at + 3]))
      put(fields, 'n', remember(fields, job, tonumber(was[3]), name, attempt, facts, moment))
    end
    if ARGV[at + 5] ~= '' then put(fields, 'saved', ARGV[at + 5]) end
    if #fields > 0 then redis.call('HSET', job, unpack(fields)) end
    answers[#answers + 1] = { 'noted', state }
  end
  at = at + 6
end
return conclude(answers)
