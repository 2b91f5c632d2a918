-- POSTs the lines of a file, one a request and each once, and writes what came of it as one line of JSON.
-- wrk -s wrk.lua URL -- FILE; without a file it GETs the URL.

local requests = {}
local sent = 0

function init(args)
  if #args == 0 then
    requests[1] = wrk.format("GET")
    return
  end
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, nil, line)
  end
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"answered": %d, "refused": %d, "lost": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f}\n',
    summary.requests - errors.status, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  ))
end
