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

SCHEMA_VERSION: Final = 2


@dataclass(frozen=True)
class Script:
    """A script and the name under which the server keeps it."""

    text: str
    sha: str


def _script(body: str) -> Script:
    text = PRELUDE + body
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# Version. Returns the one that is there, which is this one where there was none or an earlier one. No process of an
# earlier version may be at work then.
OPEN: Final = _script("""
redis.call('SETNX', K.schema, ARGV[1])
if redis.call('GET', K.schema) == '1' then  -- a state was one sorted set for all tasks
  for _, id in ipairs(redis.call('ZRANGE', K.all, 0, -1)) do
    local job = get(id, 'state', 'accepted', 'request')
    local task = cjson.decode(job[3]).task
    redis.call('HSET', K.job(id), 'task', task)
    redis.call('ZREM', P .. 'state:' .. job[1], id)
    move(id, task, nil, job[1], job[2])
  end
  redis.call('SET', K.schema, ARGV[1])
end
return redis.call('GET', K.schema)
""")

# now, limit of the queue, random part of the id, idempotency key or '', deadline in microseconds from now or '',
# class, model, task, request, its artifacts. Returns {'queued', job}, {'known', job} or {'full', number of queued}.
SUBMIT: Final = _script("""
local limit, random, key, deadline, class, model, task, request = unpack(ARGV, 2, 9)
if key ~= '' then
  local id = redis.call('HGET', K.keys, key)
  if id then return {'known', whole(id)} end
end
local queued = count('queued')
if queued >= tonumber(limit) then return {'full', queued} end
local now = now_us()
local accepted = math.max(now, (tonumber(redis.call('GET', K.clock)) or 0) + 1)
redis.call('SET', K.clock, str(accepted))
local id = string.format('%014x', accepted) .. random
accepted = str(accepted)
local queue = class .. ':' .. model
redis.call('HSET', K.job(id), 'id', id, 'state', 'queued', 'created', str(now), 'accepted', accepted,
  'priority', class, 'queue', queue, 'attempts', 0, 'task', task, 'request', request)
if deadline ~= '' then
  deadline = str(now + tonumber(deadline))
  redis.call('HSET', K.job(id), 'deadline', deadline)
end
if key ~= '' then
  redis.call('HSET', K.job(id), 'key', key)
  redis.call('HSET', K.keys, key, id)
end
refer(id, 10)
redis.call('ZADD', K.all, accepted, id)
move(id, task, nil, 'queued', accepted)
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
  local job = get(id, 'accepted', 'queue', 'deadline', 'task')
  if job[3] and tonumber(job[3]) <= now then  -- one of more than a call of expire ends
    finish(id, 'expired', now)
  else
    dequeue(id, job[2], job[3])
    move(id, job[4], 'queued', 'running', job[1])
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
refer(id, 6)
return 1
""")

# now, job id. Returns the job, empty for none.
CANCEL: Final = _script("""
cancel(ARGV[2])
return whole(ARGV[2])
""")

# now, job id. Returns the job, empty for none.
DELETE: Final = _script("""
cancel(ARGV[2])
local job = whole(ARGV[2])
if #job > 0 then forget(ARGV[2], {}) end
return job
""")

# now, job id, each class and its head start. Returns the number of jobs before it, false when it is not queued.
POSITION: Final = _script("""
local job = get(ARGV[2], 'state', 'accepted', 'priority')
if job[1] ~= 'queued' then return false end
local head_starts, before = {}, 0
for i = 3, #ARGV, 2 do head_starts[ARGV[i]] = tonumber(ARGV[i + 1]) end
local own = head_starts[job[3]]
for _, queue in ipairs(redis.call('SMEMBERS', K.queues)) do
  local head_start = head_starts[string.match(queue, '^%a+')]
  local accepted = str(tonumber(job[2]) + own - head_start)
  -- Of two jobs with the same turn the one that was accepted first is claimed first.
  before = before + redis.call('ZCOUNT', K.queue(queue), '-inf', head_start > own and accepted or '(' .. accepted)
end
return before
""")

# now, job id. Returns the job, empty for none.
GET: Final = _script("return whole(ARGV[2])")
STATES: Final = _script("""
local found = {}
for i = 2, #ARGV do found[i - 1] = get(ARGV[i], 'state')[1] end
return found
""")

# now, limit, id of the job before the first or '', 1 for oldest first, number of states, states, tasks; no states: all
# jobs. Returns the jobs, or false for an unknown id.
LIST: Final = _script("""
local limit, oldest_first, states = tonumber(ARGV[2]), ARGV[4] == '1', tonumber(ARGV[5])
local bound = oldest_first and '-inf' or '+inf'
if ARGV[3] ~= '' then
  local accepted = get(ARGV[3], 'accepted')[1]
  if not accepted then return false end
  bound = '(' .. accepted
end
local order, last = 'ZREVRANGEBYSCORE', '-inf'
if oldest_first then order, last = 'ZRANGEBYSCORE', '+inf' end
local found = {}
local function look(key)
  local part = redis.call(order, key, bound, last, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #part, 2 do found[#found + 1] = {tonumber(part[i + 1]), part[i]} end
end
if states == 0 then look(K.all) end
for i = 6, 5 + states do
  for j = 6 + states, #ARGV do look(K.state(ARGV[i], ARGV[j])) end
end
table.sort(found, function(a, b) if oldest_first then return a[1] < b[1] else return a[1] > b[1] end end)
local jobs = {}
for i = 1, math.min(limit, #found) do jobs[i] = whole(found[i][2]) end
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

# now. Returns the number of running jobs, {class, model, queued jobs, accepted, created} of each queue, and ends.
STATS: Final = _script("""
local queues = {}
for i, queue in ipairs(redis.call('SMEMBERS', K.queues)) do
  local head = redis.call('ZRANGE', K.queue(queue), 0, 0)[1]
  local job = get(head, 'accepted', 'created')
  local class, model = string.match(queue, '^(%a+):(.*)$')
  queues[i] = {class, model, redis.call('ZCARD', K.queue(queue)), job[1], job[2]}
end
return {count('running'), queues, redis.call('HGETALL', K.ends)}
""")

# now, time before which the jobs ended, limit. Returns the number of jobs and the artifacts that are free.
PRUNE: Final = _script("""
local ids, free = redis.call('ZRANGEBYSCORE', K.ended, '-inf', '(' .. ARGV[2], 'LIMIT', 0, tonumber(ARGV[3])), {}
for _, id in ipairs(ids) do forget(id, free) end
return {#ids, free}
""")

# now, artifacts. Returns for each whether a job refers to it.
REFERENCED: Final = _script("""
local found = {}
for i = 2, #ARGV do found[i - 1] = redis.call('HEXISTS', K.artifacts, ARGV[i]) end
return found
""")
