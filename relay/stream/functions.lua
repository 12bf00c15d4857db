-- The relay's server-side functions. Each is one atomic step on the keys of one shard.
--
-- The server isolates a function but never rolls one back, so each checks all that could fail
-- before it writes. Ids are counted in ordinals, milliseconds * 256 + sequence: consecutive
-- numbers are consecutive ids, and all stay far below 2^53, where Lua's numbers are exact.

local SEQUENCES = 256

local NO_LOG = 'NOLOG the shard log does not exist'

-- How often to look whether a run log still exists, and how many to look at in one step: some 2 ms.
local LOOK_AGAIN_MS = 60000
local LOOKS = 1000

-- Words of one command: far below what Lua can pass to it.
local WORDS_AT_ONCE = 500

local function ordinal(id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms) * SEQUENCES + tonumber(sequence)
end

local function stream_id(number)
  local sequence = number % SEQUENCES
  return string.format('%.0f-%d', (number - sequence) / SEQUENCES, sequence)
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
local function room(known, quota, now_ms)
  local count = redis.pcall('ZCARD', known)
  if type(count) == 'table' then return nil, count end
  if count < quota then return quota - count end
  local due = redis.call('ZRANGEBYSCORE', known, '-inf', now_ms, 'LIMIT', 0, LOOKS)
  for i = 1, #due do
    local left = redis.call('PTTL', due[i])
    if left == -2 then
      redis.call('ZREM', known, due[i])
      count = count - 1
    else
      redis.call('ZADD', known, now_ms + math.max(left, LOOK_AGAIN_MS), due[i])
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
    a = a + 3
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
-- ordinal `number` on. Their entries themselves are not looked at: they may be large.
local function looked_up(keys, runs, number)
  local fresh, from = nil, stream_id(number)
  for run = 1, runs do
    local length = redis.pcall('XLEN', keys[1 + run])
    if type(length) == 'table' then return nil, false, length end
    if length == 0 then
      fresh = fresh or {}
      fresh[run] = true
    elseif redis.call('XRANGE', keys[1 + run], from, '+', 'COUNT', 1)[1] then
      return nil, false
    end
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
    local id, run = prefix .. sequence, tonumber(args[a])
    local name, kind, text = args[5 + run], args[a + 1], args[a + 2]
    local added = redis.pcall('XADD', log, 'NOMKSTREAM', id, 'r', name, 'k', kind, 'e', text)
    if not added then return redis.error_reply(NO_LOG) end
    if type(added) == 'table' then return added end
    call('XADD', keys[1 + run], id, 'r', name, 'k', kind, 'e', text)
    if not written[run] then
      written[run] = true
      call('PERSIST', keys[1 + run])
    end
    a = a + 3
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
  if left ~= -2 and (left <= lifetime or redis.call('HLEN', young) + #words / 2 > most / 2) then
    redis.call('UNLINK', old)
    redis.call('RENAME', young, old)
    left = -2
  end
  for i = 1, #words, WORDS_AT_ONCE do
    redis.call('HSET', young, unpack(words, i, math.min(i + WORDS_AT_ONCE - 1, #words)))
  end
  if left == -2 then redis.call('PEXPIRE', young, 2 * lifetime) end
end

-- Appends what `append` says, from the ordinal `number` on. Answers nothing, and has written nothing, where
-- there is already something from there on.
local function append_from(keys, args, runs, number, now_ms)
  local young, old, known, places = keys[#keys - 2], keys[#keys - 1], keys[#keys], nil
  local fresh, free, problem = looked_up(keys, runs, number)
  if not free then return nil, problem end
  if fresh then
    places, problem = room(known, tonumber(args[4]), now_ms)
    if problem then return nil, problem end
  end

  local answers, writes, used, remembered, opened = {}, {}, {}, {}, {}
  local next_ordinal = number
  local i = 6 + runs
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
    i = i + 3 + 3 * count
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
  if remembered[1] then remember(young, old, remembered, tonumber(args[2]), tonumber(args[5])) end
  for n = 1, #opened do redis.call('ZADD', known, now_ms + LOOK_AGAIN_MS, opened[n]) end
  return answers
end

-- Appends groups of events, each group whole and in order, to the shard log and the run logs.
--
-- KEYS  the shard log; the run logs; the young and the old table of idempotency keys; the set of run logs
--       that there are
-- ARGV  the number of run logs, how many ms to remember an idempotency key, the highest ordinal that
--       the caller knows to be taken, how many run logs there may be, how many idempotency keys to
--       remember at most, the runs, then for each group:
--         its idempotency key or nothing, a digest of it, its number of events,
--         then for each event: which run, kind, text
-- Answers, for each group, the ordinal of its first event; the others follow without a hole. A
-- group whose key was used for the same digest before is not written again and answers what it
-- answered then, below zero, so that repeats can be counted; with another digest it is not written and
-- answers -1. A group with new runs for which there is no more room is not written and answers -2.
--
-- Ids go on from the clock, or from what the caller knows. Mostly that is above all there is, and that it is
-- not is found before anything is written; only then is it looked up what the logs hold.
local function append(keys, args)
  local runs, time = tonumber(args[1]), redis.call('TIME')
  local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local number = math.max(now_ms * SEQUENCES, tonumber(args[3]) + 1)
  local answers, problem = append_from(keys, args, runs, number, now_ms)
  if answers or problem then return answers or problem end
  local last
  last, problem = top(keys[1])
  if problem then return problem end
  number = math.max(number, tips(keys, runs, last) + 1)
  answers, problem = append_from(keys, args, runs, number, now_ms)
  return answers or problem or redis.error_reply('ERR the logs take no event')
end

-- Makes sure that a shard log and its group exist, and that its ids go on above a floor.
--
-- KEYS  the shard log
-- ARGV  the group; the highest ordinal known to be taken
-- Answers the highest ordinal taken.
local function open(keys, args)
  local log, floor = keys[1], tonumber(args[2])
  local created = redis.pcall('XGROUP', 'CREATE', log, args[1], '0', 'MKSTREAM')
  if created.err and not string.find(created.err, 'BUSYGROUP') then return created end
  local last, problem = top(log)
  if problem then return problem end
  if floor > last then
    redis.call('XSETID', log, stream_id(floor))
    return floor
  end
  return last
end

-- Acknowledges the entries whose ids are the words from `first` on, many in one command.
local function acknowledge(log, group, args, first)
  local count = 0
  for i = first, #args, WORDS_AT_ONCE do
    local last = math.min(i + WORDS_AT_ONCE - 1, #args)
    count = count + redis.call('XACK', log, group, unpack(args, i, last))
  end
  return count
end

-- Acknowledges archived entries, and bounds the run logs that they belong to.
--
-- KEYS  the shard log; run logs
-- ARGV  the group, how long a run log lives after its last event in ms, how many entries it keeps, for each
--       run log the id of its newest entry that was dealt with, then ids to acknowledge; others of the same
--       batch are acknowledged before, by a plain command
-- A run log whose newest entry was dealt with gets its expiry, and one that is too long loses its
-- oldest entries, but never one that is pending. Answers how many were acknowledged.
local function settle(keys, args)
  local log, group, lifetime, keep = keys[1], args[1], args[2], tonumber(args[3])
  local runs = #keys - 1
  local acknowledged = acknowledge(log, group, args, 4 + runs)
  local oldest = redis.call('XPENDING', log, group)[2]
  for r = 1, runs do
    local run = keys[r + 1]
    local tip = redis.call('XREVRANGE', run, '+', '-', 'COUNT', 1)[1]
    if tip and tip[1] == args[3 + r] then redis.call('PEXPIRE', run, lifetime) end
    local length = redis.call('XLEN', run)
    if length > keep then
      -- Entries up to the newest one just acknowledged are archived, but for those still pending.
      local archived = args[3 + r]
      if oldest and ordinal(oldest) <= ordinal(archived) then archived = '(' .. oldest end
      local removable = redis.call('XRANGE', run, '-', archived, 'COUNT', length - keep)
      redis.call('XTRIM', run, 'MAXLEN', '=', length - #removable)
    end
  end
  return acknowledged
end

-- Moves an entry that can not be archived to the dead letters, once, however often it is called.
--
-- KEYS  the shard log; the dead letters
-- ARGV  the group; the entry's id; the fields of the dead letter
local function bury(keys, args)
  if redis.call('XACK', keys[1], args[1], args[2]) == 0 then return 0 end
  redis.call('XADD', keys[2], '*', unpack(args, 3))
  return 1
end

redis.register_function('append_@VERSION@', append)
redis.register_function('open_@VERSION@', open)

-- What archives has to work without memory too, since nothing else makes room again.
redis.register_function{function_name = 'settle_@VERSION@', callback = settle, flags = {'allow-oom'}}
redis.register_function{function_name = 'bury_@VERSION@', callback = bury, flags = {'allow-oom'}}
