-- Uses clock, names
-- What a producer keeps to: how many jobs may wait in the queue, and how many a second may come, of the queue or of a group.
-- Off in nearly all calls, and then nothing is read.
local ALLOWANCE_MS = 1000 -- what comes of a rate in so much time may come at once; never less than one job
local ROUNDING_MS = 0.5 -- sums of moments are exact to a quarter of a microsecond each, and a thousand may come at once
local KEPT_MS = 60000 -- how long a rate is remembered after it has no say any more
local waiting -- jobs of the queue whose entry nobody has read; those of them that workers hold do not count
local refusal -- the answer to the job that over_limit was asked of last, nil when it may come
local due = {} -- by key of a rate: until when what has come is paid for, at one job in 1 / rate seconds
local said, queue_rate, group_rate, readers = string.match(limits, '^(%d+) (%S+) (%S+) (%S+)$')
local most_waiting = tonumber(said or 0)

local function count_waiting()
  if most_waiting == 0 or waiting then return end
  local held = redis.pcall('XPENDING', stream, readers) -- an error where nobody has made the group yet
  waiting = redis.call('XLEN', stream) - (held.err and 0 or held[1])
end

-- When one more of this rate is paid for, and for how long it has to wait (ms) before it may come.
local function paid_at(key, rate)
  local step = 1000 / rate
  local at = math.max(due[key] or tonumber(redis.call('GET', key) or 0), now) + step
  return at, at - now - math.max(ALLOWANCE_MS, step)
end

-- Whether one more job may not come now; if it may, it has its share of the rates.
local function over_limit(group)
  count_waiting()
  local paid = {}
  refusal = waiting and waiting >= most_waiting and { 'full', digits[waiting] } or nil
  for what, rate in pairs({ queue = tonumber(queue_rate), group = group and tonumber(group_rate) }) do
    if rate and rate > 0 and not refusal then
      local key = prefix .. 'rate:' .. what .. ':' .. (what == 'queue' and queue or group)
      local at, wait = paid_at(key, rate)
      if wait > ROUNDING_MS then refusal = { 'limited', what, digits[math.ceil(wait)] } end
      paid[key] = at
    end
  end
  if refusal then return true end
  for key, at in pairs(paid) do due[key] = at end
end

local function write_rates()
  for key, at in pairs(due) do
    redis.call('SET', key, string.format('%.3f', at), 'PX', digits[math.ceil(math.max(0, at - now)) + KEPT_MS])
  end
end
