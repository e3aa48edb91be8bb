-- idempotency_end.lua -- v1
-- Says how the request ended to which an Idempotency-Key is bound, or frees the key. Idempotent by request id.
-- KEYS: {i:TENANT}:k:<hash of the key>, {i:TENANT}:a:<the same>, {i:TENANT}:used
-- ARGV: `IdempotencyEnd` of billing/cell/asks.py (JSON), the answer ('' = it is not stored)
-- Returns: {status, now_ms}: stored | ended (without the answer) | freed | missing (the key is not bound to this
--   request, or its end is known)

return function(keys, args)
  local ask, answer = cjson.decode(args[1]), args[2]
  local time = redis.call('TIME')
  local now_ms = math.floor(time[1] * 1000 + time[2] / 1000)
  local first = redis.call('HMGET', keys[1], 'id', 'ended')
  if first[1] ~= ask.request_id or first[2] then return {'missing', now_ms} end
  if not ask.ended then
    redis.call('DEL', keys[1])
    if tonumber(redis.call('HGET', keys[3], 'keys') or 0) > 0 then redis.call('HINCRBY', keys[3], 'keys', -1) end
    return {'freed', now_ms}
  end
  redis.call('HSET', keys[1], 'ended', ask.ended)
  if answer == '' then return {'ended', now_ms} end
  local bytes = tonumber(redis.call('HGET', keys[3], 'bytes') or 0)
  if bytes + #answer > ask.bytes_max then return {'ended', now_ms} end
  redis.call('HINCRBY', keys[3], 'bytes', #answer)
  redis.call('SET', keys[2], answer, 'PX', ask.answer_ms)
  return {'stored', now_ms}
end
