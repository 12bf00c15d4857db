-- The relay's server-side functions. Each is one atomic step on the keys of one shard.
--
-- The server isolates a function but never rolls one back, so each checks all that could fail
-- before it writes. Ids are counted in ordinals, milliseconds * 256 + sequence: consecutive
-- numbers are consecutive ids, and all stay far below 2^53, where Lua's numbers are exact.

local SEQUENCES = 256

local NO_LOG = 'NOLOG the shard log does not exist'
local NO_GROUP = 'NOGROUP the shard log or its group does not exist'

-- How often to look whether a run log still exists, and how many to look at in one step: some 2 ms.
local LOOK_AGAIN_MS = 60000
local LOOKS = 1000

-- Words of one command, and run logs in one: far below what Lua can pass to it.
local WORDS_AT_ONCE = 500
local LOGS_AT_ONCE = 200

local function ordinal(id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms) * SEQUENCES + tonumber(sequence)
end

local function stream_id(number)
  local sequence = number % SEQUENCES
  return string.format('%.0f-%d', (number - sequence) / SEQUENCES, sequence)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function field(flat, name)
  for i = 1, #flat, 2 do
    if flat[i] == name then return flat[i + 1] end
  end
end

-- The highest id that a log ever held, as an ordinal; nil and an error where there is no log.
local function top(log)
  local info = redis.pcall('XINFO', 'STREAM', log)
  if info.err then
    if redis.call('EXISTS', log) == 0 then
      return nil, redis.error_reply(NO_LOG)
    end
    return nil, info
  end
  return ordinal(field(info, 'last-generated-id'))
end

-- How many more run logs there may be.
--
-- A run log expires by itself, and nobody is told. So where the set of them is full, those are looked
-- at whose time to look has come; as they are looked at no sooner than they can have expired, this
-- costs little however often it is asked for. (They share the hash tag of the keys that are declared.)
local function room(known, quota, now)
  local count = redis.pcall('ZCARD', known)
  if type(count) == 'table' then return nil, count end
  if count < quota then return quota - count end
  local due = redis.call('ZRANGEBYSCORE', known, '-inf', now, 'LIMIT', 0, LOOKS)
  for i = 1, #due do
    local left = redis.call('PTTL', due[i])
    if left == -2 then
      redis.call('ZREM', known, due[i])
      count = count - 1
    else
      redis.call('ZADD', known, now + math.max(left, LOOK_AGAIN_MS), due[i])
    end
  end
  return quota - count
end

-- Which runs the events of a group would be the first ones of.
local function unopened(fresh, args, a, count)
  local found, seen = {}, {}
  for _ = 1, count do
    local run = tonumber(args[a])
    if fresh[run] and not seen[run] then
      seen[run] = true
      found[#found + 1] = run
    end
    a = a + 2
  end
  return found
end

-- The highest ordinal of these run logs, not below `last`.
local function tips(keys, runs, last)
  for run = 1, runs do
    local tip = redis.call('XREVRANGE', keys[1 + run], '+', '-', 'COUNT', 1)
    if tip[1] then last = math.max(last, ordinal(tip[1][1])) end
  end
  return last
end

-- Which of the run logs do not exist yet, or nil where all do; and whether none has an entry from the
-- ordinal `number` on. Asked for many at once, and their entries themselves are not looked at: they may be large.
local function looked_up(keys, runs, number)
  local before, there = stream_id(number - 1), 0
  for first = 2, runs + 1, LOGS_AT_ONCE do
    local last = math.min(first + LOGS_AT_ONCE - 1, runs + 1)
    local words = {unpack(keys, first, last)}
    for _ = first, last do words[#words + 1] = before end
    local newer = redis.pcall('XREAD', 'COUNT', 1, 'STREAMS', unpack(words))
    if newer then return nil, false, newer.err and newer end
    there = there + redis.call('EXISTS', unpack(keys, first, last))
  end
  if there == runs then return nil, true end
  local fresh = {}
  for run = 1, runs do
    if redis.call('EXISTS', keys[1 + run]) == 0 then fresh[run] = true end
  end
  return fresh, true
end

-- Writes a group, whose first event is described from args[a] on. The part of its ids that is the same for
-- many, the millisecond, is put into words once. A run log expires only once all of it is archived (see
-- settle), so news takes its expiry away. Answers nothing, or what the shard log says instead of taking an
-- event; it can say so only of the very first one.
local function write(keys, args, a, count, number, written)
  local call, log = redis.call, keys[1]
  local sequence, prefix = SEQUENCES, nil
  for n = number, number + count - 1 do
    sequence = sequence + 1
    if sequence >= SEQUENCES then
      sequence = n % SEQUENCES
      prefix = string.format('%.0f-', (n - sequence) / SEQUENCES)
    end
    local id, run, entry = prefix .. sequence, tonumber(args[a]), args[a + 1]
    local added = redis.pcall('XADD', log, 'NOMKSTREAM', id, 'e', entry)
    if not added then return redis.error_reply(NO_LOG) end
    if type(added) == 'table' then return added end
    call('XADD', keys[1 + run], id, 'e', entry)
    if not written[run] then
      written[run] = true
      call('PERSIST', keys[1 + run])
    end
    a = a + 2
  end
end

-- What an idempotency key was used for before, or false.
--
-- There are two tables of them. Where the young one has half of what may be remembered, or is as old as a key
-- has to get, it becomes the old one, and what that held is forgotten: two look-ups and a write in all, however
-- many there are, and nothing to look for that is too old.
local function recalled(young, old, once)
  return redis.pcall('HGET', young, once) or redis.pcall('HGET', old, once)
end

-- Remembers what keys were used for: `words` are keys and values in turn.
local function remember(young, old, words, lifetime, most)
  local left = redis.call('PTTL', young)
  if left ~= -2 and (left <= 1.5 * lifetime or redis.call('HLEN', young) + #words / 2 > most / 2) then
    redis.call('UNLINK', old)
    redis.call('RENAME', young, old)
    left = -2
  end
  for i = 1, #words, WORDS_AT_ONCE do
    redis.call('HSET', young, unpack(words, i, math.min(i + WORDS_AT_ONCE - 1, #words)))
  end
  -- Longer than until the next turn, which unlinks it in the background: a table of millions that expires
  -- holds up servers before Redis 8.
  if left == -2 then redis.call('PEXPIRE', young, math.floor(2.5 * lifetime)) end
end

-- Appends what `append` says, from the ordinal `number` on. Answers nothing, and has written nothing, where
-- there is already something from there on.
local function append_from(keys, args, number, now)
  local young, old, known, places = keys[#keys - 2], keys[#keys - 1], keys[#keys], nil
  local fresh, free, problem = looked_up(keys, #keys - 4, number)
  if not free then return nil, problem end
  if fresh then
    places, problem = room(known, tonumber(args[3]), now)
    if problem then return nil, problem end
  end

  local answers, writes, used, remembered, opened = {}, {}, {}, {}, {}
  local next_ordinal = number
  local i = 5
  while i <= #args do
    local once, digest, count = args[i], args[i + 1], tonumber(args[i + 2])
    local first = next_ordinal
    local new
    if once ~= '' then
      local before = used[once] or recalled(young, old, once)
      if type(before) == 'table' then return nil, before end
      if before then
        -- A key that came again is remembered anew. Whoever then waits for this write (WAITAOF) has waited for
        -- the one that the key stands for, too, though another connection made that.
        if not used[once] then
          used[once] = before
          remembered[#remembered + 1] = once
          remembered[#remembered + 1] = before
        end
        local same, kept = string.match(before, '^(.*):(%d+)$')
        first = same == digest and -tonumber(kept) or -1
      end
    end
    if fresh and first == next_ordinal then
      new = unopened(fresh, args, i + 3, count)
      if #new > places then first = -2 end
    end
    if first == next_ordinal then
      if once ~= '' then
        used[once] = digest .. ':' .. string.format('%.0f', first)
        remembered[#remembered + 1] = once
        remembered[#remembered + 1] = used[once]
      end
      for n = 1, new and #new or 0 do
        fresh[new[n]] = nil
        places = places - 1
        opened[#opened + 1] = keys[1 + new[n]]
      end
      writes[#writes + 1] = i + 3
      writes[#writes + 1] = count
      next_ordinal = next_ordinal + count
    end
    answers[#answers + 1] = first
    i = i + 3 + 2 * count
  end

  local written = {}
  for w = 1, #writes, 2 do
    problem = write(keys, args, writes[w], writes[w + 1], number, written)
    if problem then
      if string.find(problem.err, 'equal or smaller', 1, true) then problem = nil end
      return nil, problem
    end
    number = number + writes[w + 1]
  end
  if remembered[1] then remember(young, old, remembered, tonumber(args[1]), tonumber(args[4])) end
  for n = 1, #opened do redis.call('ZADD', known, now + LOOK_AGAIN_MS, opened[n]) end
  return answers
end

-- Appends groups of events, each group whole and in order, to the shard log and the run logs.
--
-- KEYS  the shard log; the run logs; the young and the old table of idempotency keys; the set of run logs
--       that there are
-- ARGV  how many ms to remember an idempotency key, the highest ordinal that the caller knows to be taken, how
--       many run logs there may be, how many idempotency keys to remember at most, then for each group:
--         its idempotency key or nothing, a digest of it, its number of events,
--         then for each event: which run, entry
-- Answers, for each group, the ordinal of its first event; the others follow without a hole. A
-- group whose key was used for the same digest before is not written again and answers what it
-- answered then, below zero, so that repeats can be counted; with another digest it is not written and
-- answers -1. A group with new runs for which there is no more room is not written and answers -2.
--
-- Ids go on from the clock, or from what the caller knows. Mostly that is above all there is, and that it is
-- not is found before anything is written; only then is it looked up what the logs hold.
local function append(keys, args)
  local now = now_ms()
  local number = math.max(now * SEQUENCES, tonumber(args[2]) + 1)
  local answers, problem = append_from(keys, args, number, now)
  if answers or problem then return answers or problem end
  local last
  last, problem = top(keys[1])
  if problem then return problem end
  number = math.max(number, tips(keys, #keys - 4, last) + 1)
  answers, problem = append_from(keys, args, number, now)
  return answers or problem or redis.error_reply('ERR the logs take no event')
end

-- Makes sure that a shard log and its group exist, and that its ids go on above a floor.
--
-- KEYS  the shard log
-- ARGV  the group; the highest ordinal known to be taken
-- Answers the highest ordinal taken.
local function open(keys, args)
  local log, floor = keys[1], tonumber(args[2])
  local created = redis.pcall('XGROUP', 'CREATE', log, args[1], '0', 'MKSTREAM', 'ENTRIESREAD', 0)
  if created.err and not string.find(created.err, 'BUSYGROUP') then return created end
  local last, problem = top(log)
  if problem then return problem end
  if floor > last then
    redis.call('XSETID', log, stream_id(floor))
    return floor
  end
  return last
end

-- How far persisters have come: the group of that name, as field and value in turn. An error where there is none.
local function group_of(log, name)
  local groups = redis.pcall('XINFO', 'GROUPS', log)
  if groups.err and redis.call('EXISTS', log) == 1 then return nil, groups end
  for _, group in ipairs(groups) do
    if field(group, 'name') == name then return group end
  end
  return nil, redis.error_reply(NO_GROUP)
end

-- Up to where all is archived that persisters were given before `position`, as an ordinal: where the oldest of
-- the batches begins that they are still at, or else all of it. One that began at `own` is archived as well.
local function archived_up_to(claims, position, own)
  for _, before in ipairs(redis.call('HKEYS', claims)) do
    if before ~= own then position = math.min(position, ordinal(before)) end
  end
  return position
end

-- Makes a batch that was read one persister's own, unless another one was faster.
--
-- A batch is what lies between two positions of the log, and costs one field however many entries it has: the
-- position before it, with the id of its last entry, the time, how many there are, and who has it.
--
-- KEYS  the shard log; the claims; the set of what was erased
-- ARGV  the group, the persister, the position that was read from, how much had been erased before it was read,
--       the id of the last entry that was read, how many there are
-- Answers the position of the group before, and whether the batch was claimed: not where the position is another
-- one than was read from, and not where something was erased since, since whoever erases only waits for claims.
local function claim(keys, args)
  local log, last, count = keys[1], args[5], tonumber(args[6])
  local group, problem = group_of(log, args[1])
  if problem then return problem end
  local position, read = field(group, 'last-delivered-id'), field(group, 'entries-read')
  if position ~= args[3] or redis.call('SCARD', keys[3]) ~= tonumber(args[4]) then return {position, 0} end
  local info = redis.call('XINFO', 'STREAM', log)
  if field(info, 'last-generated-id') == last then
    read = field(info, 'entries-added')
  elseif read then
    read = read + count
  end
  redis.call('HSET', keys[2], position, table.concat({last, now_ms(), count, args[2]}, ' '))
  if read then
    redis.call('XGROUP', 'SETID', log, args[1], last, 'ENTRIESREAD', read)
  else
    redis.call('XGROUP', 'SETID', log, args[1], last)
  end
  return {position, 1}
end

-- Gives a persister a batch that it or another one claimed and did not settle: the oldest one of its own, or of
-- those that were claimed so long ago.
--
-- KEYS  the claims
-- ARGV  the persister; how many ms ago, or nothing for its own ones
-- Answers the position before it, the id of its last entry and how many it had, or nothing.
local function take_over(keys, args)
  local who, idle, now = args[1], tonumber(args[2]), now_ms()
  local claims, oldest = redis.call('HGETALL', keys[1]), nil
  for i = 1, #claims, 2 do
    local last, since, count, owner = string.match(claims[i + 1], '^(%S+) (%d+) (%d+) (.*)$')
    local its
    if idle then
      its = now - since >= idle or now < tonumber(since) -- the clock was set back
    else
      its = owner == who
    end
    if its and not (oldest and ordinal(oldest[1]) < ordinal(claims[i])) then
      oldest = {claims[i], last, tonumber(count)}
    end
  end
  if oldest then
    redis.call('HSET', keys[1], oldest[1], table.concat({oldest[2], now, oldest[3], who}, ' '))
  end
  return oldest
end

-- Gives run logs of an archived batch their expiry, and bounds them.
--
-- KEYS  the claims; the dead letters; run logs
-- ARGV  the position before the batch, the id of its last entry, how long a run log lives after its last event in ms, how many entries it
--       keeps, for each run log the id of its newest entry in the batch
-- A run log whose newest entry was dealt with gets its expiry, and one that is too long loses its oldest
-- entries, but never one that is not archived. Done again it changes nothing. Answers 1, or 0 where there is no
-- claim of that batch (any more): a peer that took it over was faster, dead letters included, or a server that
-- did not know it has taken over.
local function tidy(keys, args)
  local claims, lifetime, keep = keys[1], args[3], tonumber(args[4])
  local its = redis.call('HGET', claims, args[1])
  if not its or string.match(its, '^%S+') ~= args[2] then return 0 end
  -- What is up to its newest entry is archived, but for what others are still at: asked once for all runs.
  local others_from = archived_up_to(claims, math.huge, args[1])
  for r = 3, #keys do
    local run, newest = keys[r], args[2 + r]
    local later = redis.call('XRANGE', run, '(' .. newest, '+', 'COUNT', 1)[1]
    if not later then redis.call('PEXPIRE', run, lifetime) end
    local length = redis.call('XLEN', run)
    if length > keep then
      local archived = stream_id(math.min(others_from, ordinal(newest)))
      local removable = redis.call('XRANGE', run, '-', archived, 'COUNT', length - keep)
      redis.call('XTRIM', run, 'MAXLEN', '=', length - #removable)
    end
  end
  return 1
end

-- Ends the claim of an archived batch, and keeps what could not be archived. Of a batch of many runs `tidy` did
-- most before, in calls that let others in between.
--
-- KEYS  as for `tidy`: what is left of the run logs
-- ARGV  as for `tidy`, then for each dead letter: the number of its words, the words
-- Answers as `tidy`.
local function settle(keys, args)
  if tidy(keys, args) == 0 then return 0 end
  local i = 3 + #keys
  while i <= #args do
    redis.call('XADD', keys[2], '*', unpack(args, i + 1, i + tonumber(args[i])))
    i = i + 1 + tonumber(args[i])
  end
  redis.call('HDEL', keys[1], args[1])
  return 1
end

-- Shortens the shard log: what is archived goes, after a while.
--
-- KEYS  the shard log; the claims
-- ARGV  the group; for how many ms what is archived stays
-- Answers how many entries went: none where no persister has come to the log yet.
local function trim(keys, args)
  local group, problem = group_of(keys[1], args[1])
  if problem then return string.find(problem.err, 'NOGROUP', 1, true) and 0 or problem end
  local archived = archived_up_to(keys[2], ordinal(field(group, 'last-delivered-id')))
  local stays = math.min(archived + 1, (now_ms() - tonumber(args[2])) * SEQUENCES)
  return redis.call('XTRIM', keys[1], 'MINID', '~', stream_id(math.max(stays, 0)))
end

redis.register_function('append_@VERSION@', append)

-- What archives has to work without memory too, since nothing else makes room again.
redis.register_function{function_name = 'open_@VERSION@', callback = open, flags = {'allow-oom'}}
redis.register_function{function_name = 'claim_@VERSION@', callback = claim, flags = {'allow-oom'}}
redis.register_function{function_name = 'take_over_@VERSION@', callback = take_over, flags = {'allow-oom'}}
redis.register_function{function_name = 'tidy_@VERSION@', callback = tidy, flags = {'allow-oom'}}
redis.register_function{function_name = 'settle_@VERSION@', callback = settle, flags = {'allow-oom'}}
redis.register_function{function_name = 'trim_@VERSION@', callback = trim, flags = {'allow-oom'}}
