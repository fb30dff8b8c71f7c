-- Uses floats
-- Arguments of a job, read from its payload: 01 and MessagePack, as protocol/codec.py writes it.
local function argument_reader()
  -- One value of MessagePack at position i; returns it (nil for null) and what follows.
  -- Containers become { list = {...} } or { map = {...} }: a plain table could not tell them apart.
  local read_value

  local function read_small(data, i, bytes)
    local value = 0
    for k = i, i + bytes - 1 do value = value * 256 + string.byte(data, k) end
    return value, i + bytes
  end

  local function read_small_signed(data, i, bytes)
    local value, after = read_small(data, i, bytes)
    if value >= 2 ^ (bytes * 8 - 1) then value = value - 2 ^ (bytes * 8) end
    return value, after
  end

  -- Of eight bytes each half is exact, so the sum is rounded once: to the double next to the number.
  local function halved(read)
    return function(data, i, bytes)
      if bytes < 8 then return read(data, i, bytes) end
      return read(data, i, 4) * 2 ^ 32 + read_small(data, i + 4, 4), i + 8
    end
  end
  local read_number, read_signed = halved(read_small), halved(read_small_signed)

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
      if type(name) == 'number' and name % 1 == 0 then name = string.format('%.0f', name) end
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

  -- An extension (a moment, say): its type, and so many bytes. It is not null, and equal to nothing.
  local function skip(data, i, length) return {}, i + length + 1 end

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
    if type(part) == 'number' then
      found = value.list and value.list[part + 1]
    else
      found = value.map and value.map[part]
    end
    if found == cjson.null then return nil end
    return found
  end

  return arguments, inside
end
