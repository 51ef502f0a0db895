"""Every key of the Redis store, and the moves of jobs between them: the Lua text that each of its scripts begins with.

All keys begin with the one that a script is given as its only KEYS argument. That holds a hash tag, so in a cluster
they all lie on one node.
"""

from __future__ import annotations

from typing import Final, get_args

from service.jobs.job import Task

_TASKS = ", ".join(f"'{task}'" for task in get_args(Task))

PRELUDE: Final = (
    f"local TASKS = {{{_TASKS}}}"
    + """
local P = KEYS[1]
local K = {
  schema = P .. 'schema',        -- string: version of this layout
  clock = P .. 'clock',          -- string: when the last job was accepted; the next one counts as accepted later
  queues = P .. 'queues',        -- set: the "class:model" that have queued jobs
  deadlines = P .. 'deadlines',  -- zset: queued jobs that have a deadline, by it
  leases = P .. 'leases',        -- zset: running jobs by the end of their lease
  all = P .. 'all',              -- zset: all jobs by acceptance
  ended = P .. 'ended',          -- zset: ended jobs by the time of their end
  ends = P .. 'ends',            -- hash: state -> jobs that ever ended so
  keys = P .. 'keys',            -- hash: idempotency key -> job
  artifacts = P .. 'artifacts',  -- hash: artifact -> how often jobs have it as an input, a result or their checkpoint
}
-- hash: the job, with "accepted", "task", "queue", "key", "lease", "worker" and "artifacts" besides
function K.job(id) return P .. 'job:' .. id end
-- zset: queued jobs of a "class:model" by acceptance
function K.queue(name) return P .. 'queue:' .. name end
-- zset: all jobs of a task in that state by acceptance
function K.state(name, task) return P .. 'state:' .. name .. ':' .. task end
-- set: running jobs of a worker
function K.worker(name) return P .. 'worker:' .. name end

local function str(n) return string.format('%.0f', n) end

local function now_us()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function get(id, ...) return redis.call('HMGET', K.job(id), ...) end
local function whole(id) return redis.call('HGETALL', K.job(id)) end

local function move(id, task, from, to, accepted)
  if from then redis.call('ZREM', K.state(from, task), id) end
  redis.call('ZADD', K.state(to, task), accepted, id)
end

local function count(state)
  local jobs = 0
  for _, task in ipairs(TASKS) do jobs = jobs + redis.call('ZCARD', K.state(state, task)) end
  return jobs
end

local function enqueue(id, queue, accepted, deadline)
  redis.call('ZADD', K.queue(queue), accepted, id)
  redis.call('SADD', K.queues, queue)
  if deadline then redis.call('ZADD', K.deadlines, deadline, id) end
end

local function dequeue(id, queue, deadline)
  redis.call('ZREM', K.queue(queue), id)
  if redis.call('EXISTS', K.queue(queue)) == 0 then redis.call('SREM', K.queues, queue) end
  if deadline then redis.call('ZREM', K.deadlines, id) end
end

local function unlease(id, worker)
  redis.call('ZREM', K.leases, id)
  redis.call('SREM', K.worker(worker), id)
  redis.call('HDEL', K.job(id), 'lease', 'worker')
end

local function use(artifact) redis.call('HINCRBY', K.artifacts, artifact, 1) end

local function disuse(artifact)
  local left = redis.call('HINCRBY', K.artifacts, artifact, -1)
  if left <= 0 then redis.call('HDEL', K.artifacts, artifact) end
  return left <= 0
end

-- Refer to the artifacts in ARGV from that number on, until the job is deleted.
local function refer(id, first)
  if #ARGV < first then return end
  for i = first, #ARGV do use(ARGV[i]) end
  local before, added = get(id, 'artifacts')[1], table.concat(ARGV, ' ', first)
  redis.call('HSET', K.job(id), 'artifacts', before and before .. ' ' .. added or added)
end

-- Delete a job that has ended, and put the artifacts to which nobody refers any more into free.
local function forget(id, free)
  local job = get(id, 'state', 'task', 'key', 'artifacts')
  for artifact in string.gmatch(job[4] or '', '%S+') do
    if disuse(artifact) then free[#free + 1] = artifact end
  end
  if job[3] then redis.call('HDEL', K.keys, job[3]) end
  redis.call('ZREM', K.state(job[1], job[2]), id)
  redis.call('ZREM', K.all, id)
  redis.call('ZREM', K.ended, id)
  redis.call('DEL', K.job(id))
end

-- The job under a lease that is held, or nil.
local function leased(lease)
  local id = string.match(lease, '^(%x+)%.')
  if id and get(id, 'lease')[1] == lease then return id end
end

-- End a job that has not ended; fields are more of its hash.
local function finish(id, state, now, ...)
  local job = get(id, 'state', 'accepted', 'queue', 'deadline', 'worker', 'checkpoint', 'task')
  if job[1] == 'queued' then dequeue(id, job[3], job[4]) else unlease(id, job[5]) end
  if job[6] then
    disuse(job[6])
    redis.call('HDEL', K.job(id), 'checkpoint')
  end
  redis.call('HSET', K.job(id), 'state', state, 'finished', str(now), ...)
  move(id, job[7], job[1], state, job[2])
  redis.call('ZADD', K.ended, str(now), id)
  redis.call('HINCRBY', K.ends, state, 1)
end

local function cancel(id)
  local state = get(id, 'state')[1]
  if state == 'queued' or state == 'running' then finish(id, 'cancelled', now_us()) end
end

-- Queue a running job again, in its old turn.
local function requeue(id)
  local job = get(id, 'accepted', 'queue', 'deadline', 'worker', 'task')
  unlease(id, job[4])
  redis.call('HDEL', K.job(id), 'started')
  redis.call('HSET', K.job(id), 'state', 'queued')
  move(id, job[5], 'running', 'queued', job[1])
  enqueue(id, job[2], job[1], job[3])
end

-- End queued jobs whose deadline has passed, some at a time: the server does nothing else meanwhile.
local function expire(now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.deadlines, '-inf', str(now), 'LIMIT', 0, 1000)) do
    finish(id, 'expired', now)
  end
end
"""
)


def prefix(namespace: str) -> str:
    """What all keys of one installation begin with; several may share a server."""
    return f"{{{namespace}}}:"


def channel(namespace: str) -> str:
    """The channel of the bus."""
    return prefix(namespace) + "events"
