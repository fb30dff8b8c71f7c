-- Uses scope
-- What is asked before a job is admitted: may its parent gain children, which older job does it supersede, is there a
-- standing rule against it?

-- Parents by jid: whether each may gain children, its state, its generation, and what it has gained here.
local parents = {}
local function parent_of(jid)
  local parent = parents[jid]
  if parent then return parent end
  local job = key_of(jid)
  heed(job)
  local was = fields_of(job, 'state', 'token', 'cause', 'depth', 'final')
  local open = LIVE[was[1]] and not was[5]
  if parent_token ~= '' then open = was[1] == 'running' and was[2] == parent_token end
  parent = { open = open, state = was[1] or '', cause = was[1] == 'cancelling' and was[3] or '', kids = 0 }
  parent.depth, parent.children = tonumber(was[4]) or 0, {}
  parents[jid] = parent
  return parent
end
local function write_parents()
  for jid, parent in pairs(parents) do
    if parent.kids > 0 then
      local job = key_of(jid)
      redis.call('HINCRBY', job, 'kids', parent.kids)
      redis.call('HINCRBY', job, 'open', #parent.children / 2)
      redis.call('HSET', job, 'own', 1)
      if parent.born_over then redis.call('HSETNX', job, 'cancelled_kid', parent.born_over) end
      if #parent.children > 0 then redis.call('ZADD', prefix .. 'children:' .. jid, unpack(parent.children)) end
    end
  end
  parents = {}
end
at_end[4] = write_parents

-- The job of this key before this one is asked to stop. Its parent may end with it, so what parents have gained is written
-- first, and read again afterwards.
local function supersede(key, jid, lives)
  write_parents()
  local before = redis.call('HGET', prefix .. 'keyed', key)
  if lives then redis.call('HSET', prefix .. 'keyed', key, jid) else redis.call('HDEL', prefix .. 'keyed', key) end
  if not before or before == jid then return end
  local job = key_of(before)
  heed(job)
  local was = fields_of(job, 'state', 'n', 'attempt')
  if LIVE[was[1]] then
    local wish = { cause = 'superseded', reason = 'superseded by ' .. jid, source = '' }
    local verdict = accept(job, was[1], tonumber(was[2]), was[3] or 0, wish, '')
    if hushed and verdict == 'signalled' then announce('superseded') end -- by a worker: a word to all of them
  end
end

-- The wish of a standing rule that this newborn job matches.
local function fence(jid, fields)
  if newest == 0 then return nil end
  local facts = { jid = jid }
  for k = 1, #fields, 2 do facts[fields[k]] = fields[k + 1] end
  facts.cleared = nil
  return matching(facts, true)
end
