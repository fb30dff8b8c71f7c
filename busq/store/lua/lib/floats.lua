-- A number of IEEE 754 at position i of a text: so many bytes, with so many bits of exponent. Returns it and what follows.
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
