-- Uses record
-- What a scope has brought about, counted in {s}:scope:<id> once for all jobs of this call.
local tallies = {}
local function tally(scope, what, by)
  local own = tallies[scope] or {}
  tallies[scope] = own
  own[what] = (own[what] or 0) + (by or 1)
end
local function write_tallies()
  for scope, counts in pairs(tallies) do
    local key = prefix .. 'scope:' .. scope
    if redis.call('EXISTS', key) == 1 then
      for what, by in pairs(counts) do redis.call('HINCRBY', key, what, by) end
      local was = redis.call('HMGET', key, 'state', 'unfinished')
      if was[1] ~= 'settling' and tonumber(was[2] or 0) == 0 then redis.call('PUBLISH', done_prefix .. scope, was[1]) end
    end
  end
  tallies = {}
end
at_end[3] = write_tallies
