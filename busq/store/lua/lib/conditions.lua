-- Uses names, arguments, operators
-- Conditions of rules, as protocol/where.py writes them, made into functions of a job's facts. A call that meets no live
-- rule does without all of this. What is written otherwise, by a newer busq, is an error here and not when a job is judged.
local function conditions()
  local compile, OPERATORS

  local function number_of(name) return function(facts) return tonumber(facts[name]) or 0 end end
  local function text_of(name) return function(facts) return facts[name] end end

  local PLAIN = { jid = 'jid', kind = 'kind', queue = 'queue', group = 'group', parent = 'parent', state = 'state' }
  -- Which field of a record a name of the language reads, and how.
  local FIELDS = {
    jid = { nil, text_of('jid') },
    kind = { 'kind', text_of('kind') },
    queue = { 'queue', text_of('queue') },
    group = { 'group', text_of('group') },
    parent = { 'parent', text_of('parent') },
    state = { 'state', text_of('state') },
    attempt = { 'attempt', number_of('attempt') },
    failures = { 'failures', number_of('failures') },
    losses = { 'losses', number_of('losses') },
    enqueued = { 'enqueued', number_of('enqueued') },
    age = { 'enqueued', function(facts) return (facts.at - (tonumber(facts.enqueued) or 0)) / 1000 end },
    worker = { 'owner', function(facts) return facts.state == 'running' and facts.owner or nil end },
  }

  local function tag_of(path)
    return function(facts)
      if facts.tag == nil then
        local sound, tags = pcall(cjson.decode, facts.tags or '{}')
        facts.tag = sound and type(tags) == 'table' and tags or {}
      end
      local value = facts.tag[path[1]]
      return type(value) == 'string' and value or nil
    end
  end

  local function argument_of(path)
    local arguments, inside = argument_reader()
    return function(facts)
      if facts.args == nil then facts.args = arguments(facts.payload) end
      local first = facts.args[type(path[1]) == 'number' and 1 or 2]
      local value = inside(first, path[1])
      for k = 2, #path do value = inside(value, path[k]) end
      return value
    end
  end

  local function operand(node, names)
    for _, part in ipairs(node.p or {}) do assert(type(part) == 'string' or type(part) == 'number') end
    if node.f == 'args' or node.f == 'tags' then
      assert(node.p[1] ~= nil)
      names[node.f == 'args' and 'payload' or 'tags'] = true
      return (node.f == 'args' and argument_of or tag_of)(node.p)
    elseif node.f then
      local field = assert(FIELDS[node.f])
      if field[1] then names[field[1]] = true end
      return field[2]
    end
    local value = node.v
    assert(value ~= nil)
    if value == cjson.null then value = nil end
    if type(value) == 'table' then value = { list = value } end
    return function() return value end
  end

  local function is_under(facts, jid)
    local above = facts.parent
    for _ = 1, DEEPEST do
      if not above or above == jid then return above == jid end
      above = fields_of(key_of(above), 'parent')[1]
    end
    return false
  end

  local function all_of(parts)
    return function(facts)
      for _, part in ipairs(parts) do
        if not part(facts) then return false end
      end
      return true
    end
  end

  local function any_of(parts)
    return function(facts)
      for _, part in ipairs(parts) do
        if part(facts) then return true end
      end
      return false
    end
  end

  -- A condition as a function of a job's facts; `names` gathers the fields that it reads.
  compile = function(node, names)
    local word = node[1]
    if word == 'under' then
      names.parent = true
      assert(type(node[2]) == 'string')
      return function(facts) return is_under(facts, node[2]) end
    elseif word == 'and' or word == 'or' or word == 'not' then
      local parts = {}
      for k = 2, #node do parts[k - 1] = compile(node[k], names) end
      if #parts == 1 and word ~= 'not' then return parts[1] end
      if word == 'not' then return function(facts) return not parts[1](facts) end end
      return word == 'and' and all_of(parts) or any_of(parts)
    end
    local left, right = operand(node[2], names), operand(node[3], names)
    local literal = node[3].v
    if word == '==' and type(literal) == 'string' then -- nearly all conditions are of this sort
      local name = PLAIN[node[2].f]
      return name and function(facts) return facts[name] == literal end or function(facts) return left(facts) == literal end
    end
    OPERATORS = OPERATORS or operators()
    local operator = assert(OPERATORS[word])
    return function(facts) return operator(left(facts), right(facts)) end
  end
  return compile
end
