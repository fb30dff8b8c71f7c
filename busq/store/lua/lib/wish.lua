-- What is written of a wish that a job stops. `wish` has cause, reason, source and, where it may be sent twice, request.
local function requested(job, n, attempt, wish)
  local fields = { 'cause', wish.cause, 'reason', wish.reason, 'source', wish.source, 'requested', stamp }
  if wish.request then put(fields, 'request', wish.request) end
  local who = wish.source ~= '' and wish.source or nil
  return fields, remember(fields, job, n, 'requested', attempt, wish.cause, nil, who)
end

-- Nothing of this job is running: it ends here and now, and no attempt of it will start.
local function end_unstarted(job, n, attempt, wish)
  local fields
  fields, n = requested(job, n, attempt, wish)
  close_cancelled(job, fields, n, attempt, 'before_start')
end
