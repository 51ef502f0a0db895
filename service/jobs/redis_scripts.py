"""The scripts of the Redis store. The server runs each as one transaction.

Times are whole microseconds since 1970, which a Lua number holds exactly until the year 2255; they are the server's own
(``TIME``) unless the first argument gives one, so workers' clocks do not matter. A lease id is the job's id, a dot and
a secret.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from service.jobs.redis_keys import PRELUDE

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Script:
    """A script and the name under which the server keeps it."""

    text: str
    sha: str


def _script(body: str) -> Script:
    text = PRELUDE + body
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# Version. Returns the one that is there, which is this one where there was none.
OPEN: Final = _script("""
redis.call('SETNX', K.schema, ARGV[1])
return redis.call('GET', K.schema)
""")

# now, limit of the queue, random part of the id, idempotency key or '', deadline in microseconds from now or '',
# class, model, request. Returns {'queued', job}, {'known', job} or {'full', number of queued jobs}.
SUBMIT: Final = _script("""
local limit, random, key, deadline, class, model, request = unpack(ARGV, 2)
if key ~= '' then
  local id = redis.call('HGET', K.keys, key)
  if id then return {'known', whole(id)} end
end
local queued = redis.call('ZCARD', K.state('queued'))
if queued >= tonumber(limit) then return {'full', queued} end
local now = now_us()
local accepted = math.max(now, (tonumber(redis.call('GET', K.clock)) or 0) + 1)
redis.call('SET', K.clock, str(accepted))
local id = string.format('%014x', accepted) .. random
accepted = str(accepted)
local queue = class .. ':' .. model
redis.call('HSET', K.job(id), 'id', id, 'state', 'queued', 'created', str(now), 'accepted', accepted,
  'priority', class, 'queue', queue, 'attempts', 0, 'request', request)
if deadline ~= '' then
  deadline = str(now + tonumber(deadline))
  redis.call('HSET', K.job(id), 'deadline', deadline)
end
if key ~= '' then
  redis.call('HSET', K.job(id), 'key', key)
  redis.call('HSET', K.keys, key, id)
end
redis.call('ZADD', K.all, accepted, id)
move(id, nil, 'queued', accepted)
enqueue(id, queue, accepted, deadline ~= '' and deadline or nil)
return {'queued', whole(id)}
""")

# now, length of the lease, worker, limit, secret, number of classes, each class and its head start, models (none: all).
# Returns the end of the leases and the jobs.
CLAIM: Final = _script("""
local now, limit, classes = now_us(), tonumber(ARGV[4]), tonumber(ARGV[6])
local ends, worker, secret = str(now + tonumber(ARGV[2])), ARGV[3], ARGV[5]
expire(now)
local heads = {}
local function look(class, model, head_start)
  local found = redis.call('ZRANGE', K.queue(class .. ':' .. model), 0, limit - 1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local accepted = tonumber(found[i + 1])
    heads[#heads + 1] = {accepted + head_start, accepted, found[i]}
  end
end
local head_starts = {}
for i = 7, 5 + 2 * classes, 2 do head_starts[ARGV[i]] = tonumber(ARGV[i + 1]) end
if #ARGV > 6 + 2 * classes then
  for i = 7 + 2 * classes, #ARGV do
    for class, head_start in pairs(head_starts) do look(class, ARGV[i], head_start) end
  end
else
  for _, queue in ipairs(redis.call('SMEMBERS', K.queues)) do
    local class, model = string.match(queue, '^(%a+):(.*)$')
    look(class, model, head_starts[class])
  end
end
table.sort(heads, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
local jobs = {}
for i = 1, math.min(limit, #heads) do
  local id = heads[i][3]
  local job = get(id, 'accepted', 'queue', 'deadline')
  if job[3] and tonumber(job[3]) <= now then  -- one of more than a call of expire ends
    finish(id, 'expired', now)
  else
    dequeue(id, job[2], job[3])
    move(id, 'queued', 'running', job[1])
    redis.call('HSET', K.job(id), 'state', 'running', 'started', str(now), 'worker', worker,
      'lease', id .. '.' .. secret)
    redis.call('HINCRBY', K.job(id), 'attempts', 1)
    redis.call('ZADD', K.leases, ends, id)
    redis.call('SADD', K.worker(worker), id)
    jobs[#jobs + 1] = whole(id)
  end
end
return {ends, jobs}
""")

# now, length of the leases, lease ids. Returns those that are held.
RENEW: Final = _script("""
local ends, held = str(now_us() + tonumber(ARGV[2])), {}
for i = 3, #ARGV do
  local id = leased(ARGV[i])
  if id then
    redis.call('ZADD', K.leases, ends, id)
    held[#held + 1] = ARGV[i]
  end
end
return held
""")

# now, lease id, artifact. Returns whether it was written.
CHECKPOINT: Final = _script("""
local id = leased(ARGV[2])
if not id then return 0 end
local before = get(id, 'checkpoint')[1]
use(ARGV[3])
if before then disuse(before) end
redis.call('HSET', K.job(id), 'checkpoint', ARGV[3])
return 1
""")

# now, lease id, state, name and content of the field that tells the outcome, artifacts. Returns whether it was written.
END: Final = _script("""
local id = leased(ARGV[2])
if not id then return 0 end
finish(id, ARGV[3], now_us(), ARGV[4], ARGV[5])
for i = 6, #ARGV do use(ARGV[i]) end
if #ARGV > 5 then redis.call('HSET', K.job(id), 'artifacts', table.concat(ARGV, ' ', 6)) end
return 1
""")

# now, job id. Returns the job, empty for none.
CANCEL: Final = _script("""
local state = get(ARGV[2], 'state')[1]
if state == 'queued' or state == 'running' then finish(ARGV[2], 'cancelled', now_us()) end
return whole(ARGV[2])
""")

# now, job id. Returns the job, empty for none.
GET: Final = _script("return whole(ARGV[2])")

# now, limit, id of the job before the first or '', state or ''. Returns the jobs, or false for an unknown id.
LIST: Final = _script("""
local limit, bound = tonumber(ARGV[2]), '+inf'
if ARGV[3] ~= '' then
  local accepted = get(ARGV[3], 'accepted')[1]
  if not accepted then return false end
  bound = '(' .. accepted
end
local jobs, from = {}, ARGV[4] == '' and K.all or K.state(ARGV[4])
for i, id in ipairs(redis.call('ZREVRANGEBYSCORE', from, bound, '-inf', 'LIMIT', 0, limit)) do jobs[i] = whole(id) end
return jobs
""")

# now, worker or '', most attempts, error. Returns the number of jobs taken back; as many as the limit here: ask again.
REAP_LIMIT: Final = 1000
REAP: Final = _script(f"""
local now, lost = now_us()
if ARGV[2] ~= '' then
  lost = redis.call('SRANDMEMBER', K.worker(ARGV[2]), {REAP_LIMIT})
else
  lost = redis.call('ZRANGEBYSCORE', K.leases, '-inf', str(now), 'LIMIT', 0, {REAP_LIMIT})
end
for _, id in ipairs(lost) do
  if tonumber(get(id, 'attempts')[1]) >= tonumber(ARGV[3]) then
    finish(id, 'failed', now, 'error', ARGV[4])
  else
    requeue(id)
  end
end
expire(now)
return #lost
""")

# now, worker. Returns the number of jobs.
RELEASE: Final = _script("""
local ids = redis.call('SMEMBERS', K.worker(ARGV[2]))
for _, id in ipairs(ids) do
  requeue(id)
  redis.call('HINCRBY', K.job(id), 'attempts', -1)
end
return #ids
""")

# now. Returns the numbers of queued and running jobs, {class, queued jobs, accepted, created} of each queue, and ends.
STATS: Final = _script("""
local queues = {}
for i, queue in ipairs(redis.call('SMEMBERS', K.queues)) do
  local head = redis.call('ZRANGE', K.queue(queue), 0, 0)[1]
  local job = get(head, 'accepted', 'created')
  queues[i] = {string.match(queue, '^%a+'), redis.call('ZCARD', K.queue(queue)), job[1], job[2]}
end
local queued, running = redis.call('ZCARD', K.state('queued')), redis.call('ZCARD', K.state('running'))
return {queued, running, queues, redis.call('HGETALL', K.ends)}
""")

# now, time before which the jobs ended, limit. Returns the number of jobs and the artifacts that are free.
PRUNE: Final = _script("""
local ids, free = redis.call('ZRANGEBYSCORE', K.ended, '-inf', '(' .. ARGV[2], 'LIMIT', 0, tonumber(ARGV[3])), {}
for _, id in ipairs(ids) do
  local job = get(id, 'state', 'key', 'artifacts')
  for artifact in string.gmatch(job[3] or '', '%S+') do
    if disuse(artifact) then free[#free + 1] = artifact end
  end
  if job[2] then redis.call('HDEL', K.keys, job[2]) end
  redis.call('ZREM', K.state(job[1]), id)
  redis.call('ZREM', K.all, id)
  redis.call('ZREM', K.ended, id)
  redis.call('DEL', K.job(id))
end
return {#ids, free}
""")

# now, artifacts. Returns for each whether a job refers to it.
REFERENCED: Final = _script("""
local found = {}
for i = 2, #ARGV do found[i - 1] = redis.call('HEXISTS', K.artifacts, ARGV[i]) end
return found
""")
