-- What all scripts share that read records: where keys are, and what is quick in Lua.

-- Every key of a shard begins alike, so the jid is what follows in a job's key. Keys that depend on what a record says (a
-- parent's, a queue's) are made from this and not declared: they lie in the same slot.
local prefix = string.sub(events, 1, -1 - #'events')
local jid_at = #prefix + #'job:' + 1
local last_job, last_jid
local function jid_of(job)
  if job ~= last_job then last_job, last_jid = job, string.sub(job, jid_at) end
  return last_jid
end

-- Of what is stored for a rule; one that begins otherwise was made by a newer busq.
local RULE_VERSION = '1'

-- What comes down to a job from above, by key of its parent: a wish, or false for none; forgotten whenever a wish is
-- accepted.
local above = {}

-- `own` in a record: it says more than what each job's does, and is to be looked at as a whole. ALONE: nothing of that ties
-- the job to another one or to its own handler (parent, children, key, hook, scope), so far as it has never started.
local ALONE = 'alone'
local function has_ties(own) return own and own ~= ALONE end

-- Generations in a tree; enqueue admits no more.
local DEEPEST = 100

local function key_of(jid)
  last_job, last_jid = prefix .. 'job:' .. jid, jid
  return last_job
end

-- Fields of a record. A key of another type is none of ours and no record: it must not stand in the way of the jobs beside
-- it. Returns whether it is one, too. And a field that should be a number and is none counts as one that is not there.
local function fields_of(job, ...)
  local was = redis.pcall('HMGET', job, ...)
  if not was.err then return was end
  if string.sub(was.err, 1, 9) ~= 'WRONGTYPE' then return redis.call('HMGET', job, ...) end
  return {}, true
end

-- Every worker hears this word, and asks about its attempts.
local function announce(word) redis.call('PUBLISH', string.match(prefix, '^(.*){%d+}:$') .. 'rules', word) end

-- A number given to redis.call is printed with 17 digits each time, which costs more than a small HSET; the small ones
-- of a batch are nearly all the same.
local digits = setmetatable({}, { __index = function(known, number)
  local text = string.format('%d', number) -- whole numbers only; '%.0f' takes twice the time
  known[number] = text
  return text
end })

local function put(fields, name, value)
  local k = #fields
  fields[k + 1] = name
  fields[k + 2] = value
end

local function is_hook(kind) return kind and string.find(kind, '/on_cancel', -#'/on_cancel', true) ~= nil end

-- The jid that an entry of a queue names; nil for one that is no job.
local function jid_in(entry)
  for k = 1, #entry[2], 2 do
    if entry[2][k] == 'jid' then return entry[2][k + 1] end
  end
end
