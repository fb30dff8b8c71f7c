-- What the operators of a condition mean, by their signs. Values are text, numbers, booleans, nil, and { list = {...} } or
-- { map = {...} }; of two sorts that do not go together the answer is no.
local function operators()
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
    if type(value) == 'table' then return false end
    for _, each in ipairs(list) do
      if each == value or (each == cjson.null and value == nil) then return true end
    end
    return false
  end

  local function texts(left, right) return type(left) == 'string' and type(right) == 'string' end

  return {
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
      if type(right) == 'table' and right.list then return holds(right.list, left) end
      return texts(left, right) and string.find(right, left, 1, true) ~= nil
    end,
  }
end
