-- POSTs the lines of a file, one a request and each once, and writes what came of it as one line of JSON.
-- wrk -s wrk.lua URL -- steady|whole [FILE]; without a file it GETs the URL. With `steady` it also writes how many
-- answers came after the first ones, and in which time: see `steady` in http_load.py. That costs the generator as much
-- again, so it is for servers that give few answers.

local ffi = require("ffi")
ffi.cdef([[
typedef struct { long s; long ns; } moment;
int clock_gettime(int clock, moment *now);
]])
local CLOCK_MONOTONIC = 1
local BURST_S = 0.05

local threads = {}
local requests = {}
local sent = 0
local now = ffi.new("moment")
first, last, later = 0, 0, 0

function setup(thread)
  threads[#threads + 1] = thread
end

local function count_answer(status)
  if status ~= 200 then
    return
  end
  ffi.C.clock_gettime(CLOCK_MONOTONIC, now)
  last = tonumber(now.s) + tonumber(now.ns) / 1e9
  if first == 0 then
    first = last
  elseif last > first + BURST_S then
    later = later + 1
  end
end

function init(args)
  if args[1] == "steady" then
    response = count_answer
  end
  if #args == 1 then
    requests[1] = wrk.format("GET")
    return
  end
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[2]) do
    requests[#requests + 1] = wrk.format("POST", nil, nil, line)
  end
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function done(summary, latency, _)
  local errors = summary.errors
  local thread = threads[1]
  io.write(string.format(
    '{"answered": %d, "refused": %d, "lost": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, ' ..
    '"steady_answers": %d, "steady_seconds": %.6f}\n',
    summary.requests - errors.status, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    thread:get("later"), thread:get("last") - thread:get("first")
  ))
end
