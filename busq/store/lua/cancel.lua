--[[
  cancel: write down the wish that jobs stop, then say so.

  Flags    allow-oom
  KEYS     events, cancelled, tombstones, deadlines, timers, scheduled, counters, succeeded, failed, cancelled_jobs, jobs...
  ARGV     now_ms, by, history_limit, log_limit, cause, reason, source, request, grace_ms, default_grace_ms,
           default_slack_ms, tombstone_ms, keep_succeeded_ms, keep_ended_ms, notice_prefix, done_prefix
           grace_ms: '' for the job's own
  Uses     scope
  Answers  {'cancelled', state}                       it was not running; no attempt will start
           {'signalled', state, deadline}             its worker has until the deadline
           {'already_cancelling', state, deadline}    the first cause stands; a shorter grace may bring the deadline nearer
           {'already_cancelled', state}, {'already_finished', state}
           {'tombstoned', expiry}                     unknown: a later enqueue of this jid is born cancelled
           {'not_found'}                              unknown: nothing is written but that somebody asked
  Holds    a terminal state is never left; the same request sent twice is answered as the first was; the wish is
           written before it is announced.
]]
local wish = { cause = cause, reason = reason, source = source, request = request }
local answers, verdicts = {}, {}
local function answer(verdict, ...)
  answers[#answers + 1] = { verdict, ... }
  verdicts[verdict] = (verdicts[verdict] or 0) + 1
end

for i = jobs, #KEYS do
  local job = KEYS[i]
  local jid = jid_of(job)
  heed(job)
  local was = fields_of(job, 'state', 'n', 'attempt', 'request', 'deadline')
  local state, n, attempt = was[1], tonumber(was[2]), was[3] or 0
  local again = was[4] == request
  if not state then
    if tonumber(tombstone_ms) > 0 then
      local expiry = string.format('%.0f', now + tonumber(tombstone_ms))
      local before, kept = redis.call('ZSCORE', cancelled, jid), redis.call('HGET', tombstones, jid)
      if before and kept and tonumber(before) > now then
        -- The first cause stands; a later request can only make the tombstone last longer.
        local same = string.sub(kept, -#request) == request
        if same or tonumber(before) >= tonumber(expiry) then expiry = before end
        -- Of the requests the latest is kept, to be known when it is sent again.
        redis.call('HSET', tombstones, jid, string.match(kept, '^.*\t') .. request)
      else
        redis.call('HSET', tombstones, jid, table.concat({ cause, reason, source, stamp, request }, '\t'))
      end
      redis.call('ZADD', cancelled, expiry, jid)
      answer('tombstoned', expiry)
    else
      answer('not_found')
    end
  elseif LIVE[state] then
    answer(accept(job, state, n, attempt, wish, grace_ms))
  elseif state == 'cancelling' then
    local deadline = was[5]
    if grace_ms ~= '' and not again then
      local nearer = now + tonumber(grace_ms) + tonumber(terms_of(job).slack or default_slack_ms)
      if nearer < (tonumber(deadline) or 0) then
        deadline = string.format('%.0f', nearer)
        local fields = { 'deadline', deadline, 'cancel_grace', grace_ms }
        put(fields, 'n', remember(fields, job, n, 'hastened', attempt, grace_ms, nil, source ~= '' and source or nil))
        redis.call('HSET', job, unpack(fields))
        redis.call('ZADD', deadlines, deadline, jid)
        redis.call('PUBLISH', notice_prefix .. jid, 'hasten')
      end
    end
    answer(again and 'signalled' or 'already_cancelling', state, deadline)
  elseif state == 'cancelled' then
    if again then
      if was[5] then answer('signalled', state, was[5]) else answer('cancelled', state) end
    else
      answer('already_cancelled', state)
    end
  elseif again then
    answer('signalled', state, was[5]) -- it was, and returned in time as its handler may
  else
    answer('already_finished', state)
  end
end
for verdict, count in pairs(verdicts) do redis.call('HINCRBY', counters, 'verdict:' .. verdict, count) end
return conclude(answers)
