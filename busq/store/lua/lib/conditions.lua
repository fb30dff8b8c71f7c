-- Conditions of rules, as protocol/where.py writes them, made into functions of a job's facts. A call that meets no live
-- rule does without all of this.
local function conditions()
  -- Arguments -----------------------------------------------------------------------------------------------

  -- One value of MessagePack at position i; returns it (nil for null and for what cannot be compared) and what follows.
  -- Containers become { list = {...} } or { map = {...} }: a plain table could not tell them apart.
  local read_value

  local function read_number(data, i, bytes)
    local value = 0
    for k = i, i + bytes - 1 do value = value * 256 + string.byte(data, k) end
    return value, i + bytes
  end

  local function read_signed(data, i, bytes)
    local value, after = read_number(data, i, bytes)
    if value >= 2 ^ (bytes * 8 - 1) then value = value - 2 ^ (bytes * 8) end
    return value, after
  end

  local function read_float(data, i, bytes, exponent_bits)
    local fraction_bits = bytes * 8 - 1 - exponent_bits
    local first, second = string.byte(data, i, i + 1)
    local sign = first >= 128 and -1 or 1
    local kept = 16 - 1 - exponent_bits -- bits of the fraction that stand in the first two bytes
    local head = (first % 128) * 256 + second
    local exponent = math.floor(head / 2 ^ kept)
    local fraction = head % 2 ^ kept
    for k = i + 2, i + bytes - 1 do fraction = fraction * 256 + string.byte(data, k) end
    local bias = 2 ^ (exponent_bits - 1) - 1
    if exponent == 2 ^ exponent_bits - 1 then return sign * (fraction == 0 and math.huge or 0 / 0), i + bytes end
    if exponent == 0 then return sign * math.ldexp(fraction, 1 - bias - fraction_bits), i + bytes end
    return sign * math.ldexp(1 + fraction / 2 ^ fraction_bits, exponent - bias), i + bytes
  end

  local function read_text(data, i, length)
    if i + length - 1 > #data then error('cut short') end
    return string.sub(data, i, i + length - 1), i + length
  end

  local function read_list(data, i, length)
    local list = {}
    for k = 1, length do
      local value
      value, i = read_value(data, i)
      list[k] = value == nil and cjson.null or value
    end
    return { list = list }, i
  end

  local function read_map(data, i, length)
    local map = {}
    for _ = 1, length do
      local name, value
      name, i = read_value(data, i)
      value, i = read_value(data, i)
      if type(name) == 'number' then name = string.format('%.0f', name) end
      if type(name) == 'string' then map[name] = value end
    end
    return { map = map }, i
  end

  local function sized(read, bytes)
    return function(data, i)
      local length
      length, i = read_number(data, i, bytes)
      return read(data, i, length)
    end
  end

  local function skip(data, i, length) return nil, i + length + 1 end -- an extension: its type, and so many bytes

  local READ = {
    [0xc0] = function(_, i) return nil, i end,
    [0xc2] = function(_, i) return false, i end,
    [0xc3] = function(_, i) return true, i end,
    [0xc4] = sized(read_text, 1), [0xc5] = sized(read_text, 2), [0xc6] = sized(read_text, 4),
    [0xc7] = sized(skip, 1), [0xc8] = sized(skip, 2), [0xc9] = sized(skip, 4),
    [0xca] = function(data, i) return read_float(data, i, 4, 8) end,
    [0xcb] = function(data, i) return read_float(data, i, 8, 11) end,
    [0xd9] = sized(read_text, 1), [0xda] = sized(read_text, 2), [0xdb] = sized(read_text, 4),
    [0xdc] = sized(read_list, 2), [0xdd] = sized(read_list, 4),
    [0xde] = sized(read_map, 2), [0xdf] = sized(read_map, 4),
  }
  for k = 0, 3 do
    READ[0xcc + k] = function(data, i) return read_number(data, i, 2 ^ k) end
    READ[0xd0 + k] = function(data, i) return read_signed(data, i, 2 ^ k) end
  end
  for k = 0, 4 do READ[0xd4 + k] = function(data, i) return skip(data, i, 2 ^ k) end end

  read_value = function(data, i)
    local head = string.byte(data, i)
    if head < 0x80 then return head, i + 1 end
    if head < 0x90 then return read_map(data, i + 1, head - 0x80) end
    if head < 0xa0 then return read_list(data, i + 1, head - 0x90) end
    if head < 0xc0 then return read_text(data, i + 1, head - 0xa0) end
    if head >= 0xe0 then return head - 0x100, i + 1 end
    return READ[head](data, i + 1)
  end

  -- 01 [[positional ...], {name: value ...}]; bytes that are no payload have no arguments.
  local function arguments(payload)
    local sound, value = pcall(read_value, payload or '', 2)
    if sound and type(value) == 'table' and value.list then return value.list end
    return {}
  end

  local function inside(value, part)
    if type(value) ~= 'table' then return nil end
    local found
    if value.map then
      found = value.map[part]
    elseif string.match(part, '^%d+$') then
      found = value.list[tonumber(part) + 1]
    end
    if found == cjson.null then return nil end
    return found
  end

  -- Conditions ----------------------------------------------------------------------------------------------

  local compile

  local function number_of(name) return function(facts) return tonumber(facts[name] or 0) end end
  local function text_of(name) return function(facts) return facts[name] end end

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
    age = { 'enqueued', function(facts) return (facts.at - tonumber(facts.enqueued or 0)) / 1000 end },
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
    return function(facts)
      if facts.args == nil then facts.args = arguments(facts.payload) end
      local first = facts.args[string.match(path[1], '^%d+$') and 1 or 2]
      local value = inside(first, path[1])
      for k = 2, #path do value = inside(value, path[k]) end
      return value
    end
  end

  local function operand(node, names)
    if node.f == 'args' then
      names.payload = true
      return argument_of(node.p)
    elseif node.f == 'tags' then
      names.tags = true
      return tag_of(node.p)
    elseif node.f then
      local field = FIELDS[node.f]
      if field[1] then names[field[1]] = true end
      return field[2]
    end
    local value = node.v
    if value == cjson.null then value = nil end
    if type(value) == 'table' then value = { list = value } end
    return function() return value end
  end

  -- Byte by byte: Lua's own comparison follows the server's locale.
  local function is_less(left, right)
    if type(left) ~= 'string' then return left < right end
    for k = 1, math.min(#left, #right) do
      local a, b = string.byte(left, k), string.byte(right, k)
      if a ~= b then return a < b end
    end
    return #left < #right
  end

  local function comparable(left, right)
    local kind = type(left)
    return kind == type(right) and (kind == 'number' or kind == 'string')
  end

  local function equal(left, right) return left == right and type(left) ~= 'table' end

  local function holds(list, value)
    for _, each in ipairs(list) do
      if each == value or (each == cjson.null and value == nil) then return true end
    end
    return false
  end

  local function texts(left, right) return type(left) == 'string' and type(right) == 'string' end

  local OPERATORS = {
    ['=='] = equal,
    ['!='] = function(left, right) return not equal(left, right) end,
    ['<'] = function(left, right) return comparable(left, right) and is_less(left, right) end,
    ['>'] = function(left, right) return comparable(left, right) and is_less(right, left) end,
    ['<='] = function(left, right) return comparable(left, right) and (left == right or is_less(left, right)) end,
    ['>='] = function(left, right) return comparable(left, right) and (left == right or is_less(right, left)) end,
    ['^='] = function(left, right) return texts(left, right) and string.sub(left, 1, #right) == right end,
    ['$='] = function(left, right)
      return texts(left, right) and #right <= #left and string.sub(left, #left - #right + 1) == right
    end,
    ['~='] = function(left, right)
      if type(left) == 'table' and left.list then return holds(left.list, right) end
      return texts(left, right) and string.find(left, right, 1, true) ~= nil
    end,
    ['in'] = function(left, right)
      if type(right) == 'table' and right.list then return type(left) ~= 'table' and holds(right.list, left) end
      return texts(left, right) and string.find(right, left, 1, true) ~= nil
    end,
  }

  local function is_under(facts, jid)
    local above = facts.parent
    for _ = 1, DEEPEST do
      if not above or above == jid then return above == jid end
      above = redis.call('HGET', key_of(above), 'parent')
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
      return function(facts) return is_under(facts, node[2]) end
    elseif word == 'and' or word == 'or' or word == 'not' then
      local parts = {}
      for k = 2, #node do parts[k - 1] = compile(node[k], names) end
      if #parts == 1 and word ~= 'not' then return parts[1] end
      if word == 'not' then return function(facts) return not parts[1](facts) end end
      return word == 'and' and all_of(parts) or any_of(parts)
    end
    local left, right, operator = operand(node[2], names), operand(node[3], names), OPERATORS[word]
    return function(facts) return operator(left(facts), right(facts)) end
  end
  return compile
end
