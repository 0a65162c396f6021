-- The world that scripts see. Runs once per Lua state, before any script, with the real libraries
-- `N`, the functions that Rust provides, and `KEPT`, the values that Rust keeps, by number. Returns what
-- the host calls.
--
-- Invariant: no table of this file is handed out where a script could change it for others. What is
-- shared stands behind `shared`; what a script may change is made for each environment.
local N, OP, KEPT = ...

local type, error, tostring, tonumber, select, pairs, ipairs, next =
    type, error, tostring, tonumber, select, pairs, ipairs, next
local setmetatable, rawset, rawget, pcall, unpack = setmetatable, rawset, rawget, pcall, unpack
local concat, insert, remove, sort = table.concat, table.insert, table.remove, table.sort
local co_yield, co_resume, co_create, co_status =
    coroutine.yield, coroutine.resume, coroutine.create, coroutine.status
local str_lower, str_sub, str_byte, str_format = string.lower, string.sub, string.byte, string.format
local str_rep = string.rep
local floor, huge = math.floor, math.huge

-- Sharing -------------------------------------------------------------------------------------

local protected = setmetatable({}, {__mode = "k"})

local function shared(t, name)
    local proxy = setmetatable({}, {
        __index = t,
        __newindex = function(_, key)
            error(name .. "." .. tostring(key) .. " cannot be changed: it belongs to every script", 2)
        end,
        __metatable = false,
    })
    protected[proxy] = true
    return proxy
end

local function unshared(t)
    if protected[t] then error("this table cannot be changed: it belongs to every script", 3) end
end

-- A library as one environment sees it: additions stay its own.
local function library(t)
    local meta = {__index = t, __metatable = false}
    return function() return setmetatable({}, meta) end
end

-- Waiting -------------------------------------------------------------------------------------

local function wait(name, ...)
    local why = N.cannot_wait(name)
    if why then error(why, 3) end
    return co_yield(OP, name, ...)
end

-- A coroutine that resumes another takes of the thread's stack, which ends long before memory does.
local running, nested = coroutine.running, setmetatable({}, {__mode = "k"})

local function resumed(co, ...)
    local level = (nested[running() or OP] or 0) + 1
    if level > 100 then error("C stack overflow", 0) end
    if type(co) == "thread" then nested[co] = level end
    return co_resume(co, ...)
end

-- A coroutine of the script that waits hands its wish up to the host.
local function passed_on(co, ok, tag, ...)
    if ok and tag == OP then
        return passed_on(co, resumed(co, co_yield(OP, ...)))
    end
    return ok, tag, ...
end

local coroutines = {
    create = co_create,
    status = co_status,
    running = coroutine.running,
    -- What a function yields that nobody resumes goes nowhere, and it goes on.
    yield = function(...)
        if nested[running() or OP] then return co_yield(...) end
        return co_yield()
    end,
    isyieldable = coroutine.isyieldable,
    resume = function(co, ...) return passed_on(co, resumed(co, ...)) end,
}

local function raised(ok, ...)
    if not ok then error(..., 0) end
    return ...
end

function coroutines.wrap(f)
    local co = co_create(f)
    return function(...) return raised(passed_on(co, resumed(co, ...))) end
end

-- Text and tables -----------------------------------------------------------------------------

local strings = {
    byte = string.byte, char = string.char, format = string.format, len = string.len,
    lower = string.lower, upper = string.upper, rep = string.rep, reverse = string.reverse,
    sub = string.sub,
}

local find, match_at = N.find, N.match

function strings.find(s, pattern, init, plain)
    return find(s, pattern, init, plain)
end

function strings.match(s, pattern, init)
    return match_at(s, pattern, init)
end

function strings.gmatch(s, pattern)
    local at = 0
    return function()
        if not at then return nil end
        return (function(next_at, ...)
            at = next_at
            return ...
        end)(N.gmatch(s, pattern, at))
    end
end
strings.gfind = strings.gmatch

-- Captures of every match come from Rust; replacements are looked up here, so that a function among
-- them may do what any function may.
function strings.gsub(s, pattern, repl, max)
    local kind = type(repl)
    if kind == "number" then
        repl, kind = tostring(repl), "string"
    end
    if kind == "string" then
        return N.gsub(s, pattern, repl, max)
    end
    if kind ~= "table" and kind ~= "function" then
        error("bad argument #3 to 'gsub' (string/function/table expected, got " .. kind .. ")", 2)
    end
    if type(s) == "number" then s = tostring(s) end
    local out, n, at, count = {}, 0, 0, 0
    local copied = 1
    while at and (not max or count < max) do
        local caps = N.gsub_next(s, pattern, at)
        if not caps then break end
        count = count + 1
        local value
        if kind == "table" then value = repl[caps[1]] else value = repl(unpack(caps, 1, caps.n)) end
        local whole = str_sub(s, caps.from, caps.to)
        if not value then
            value = whole
        elseif type(value) ~= "string" and type(value) ~= "number" then
            error("invalid replacement value (a " .. type(value) .. ")", 2)
        end
        out[n + 1], out[n + 2] = str_sub(s, copied, caps.from - 1), value
        n, copied, at = n + 2, caps.to + 1, caps.next
    end
    out[n + 1] = str_sub(s, copied)
    return concat(out), count
end

local function less(a, b) return a < b end

-- These write without asking a metatable.
local move, charge = table.move, N.charge
local tables = {
    concat = concat, maxn = table.maxn, getn = table.getn, foreach = table.foreach,
    foreachi = table.foreachi, pack = table.pack, unpack = unpack,
    insert = function(t, ...)
        if protected[t] then unshared(t) end
        if select("#", ...) == 2 and type(t) == "table" then
            -- C moves what is behind the place, and would do so from any place that there is not.
            local at = tonumber((...))
            if at and not (at >= 0 and at < 2 ^ 31) then
                error("bad argument #2 to 'insert' (position out of bounds)", 2)
            end
            local moved = #t - (at or 0)
            if moved > 1000 then charge(moved * 8) end
        end
        return insert(t, ...)
    end,
    remove = function(t, ...)
        if protected[t] then unshared(t) end
        return remove(t, ...)
    end,
    -- Compares in Lua, where it is counted: C alone would go on for hours with a list made for that.
    sort = function(t, before)
        if protected[t] then unshared(t) end
        return sort(t, before == nil and less or before)
    end,
}
if move then
    function tables.move(from, first, last, at, to)
        if protected[to or from] then unshared(to or from) end
        return move(from, first, last, at, to)
    end
end

local function clear(t)
    for key in next, t do t[key] = nil end
end

local function nkeys(t)
    local n = 0
    for _ in next, t do n = n + 1 end
    return n
end

local function isarray(t)
    local n = 0
    for key in next, t do
        if type(key) ~= "number" or key < 1 or key % 1 ~= 0 then return false end
        if key > n then n = key end
    end
    return n == 0 or rawget(t, 1) ~= nil
end

local function shallow(t)
    local copy = {}
    for key, value in next, t do copy[key] = value end
    return copy
end

local function deepcopy(t, seen)
    if type(t) ~= "table" then return t end
    seen = seen or {}
    if seen[t] then return seen[t] end
    local copy = {}
    seen[t] = copy
    for key, value in next, t do copy[deepcopy(key, seen)] = deepcopy(value, seen) end
    return setmetatable(copy, getmetatable(t) or nil)
end

-- ngx -----------------------------------------------------------------------------------------

local null = N.null
local levels = {
    STDERR = 0, EMERG = 1, ALERT = 2, CRIT = 3, ERR = 4, WARN = 5, NOTICE = 6, INFO = 7, DEBUG = 8,
}

local function text_of(value, what)
    local kind = type(value)
    if kind == "string" then return value end
    if kind == "number" or kind == "boolean" or kind == "nil" then return tostring(value) end
    if value == null then return "null" end
    if kind == "table" or kind == "userdata" then
        local meta = getmetatable(value)
        if type(meta) == "table" and meta.__tostring then return tostring(value) end
        if kind == "userdata" then return tostring(value) end
    end
    error("bad argument to '" .. what .. "' (string, number, boolean, or nil expected, got " .. kind .. ")", 3)
end

local function log_at(level, ...)
    if not N.logs(level) then return end
    local parts = {}
    for i = 1, select("#", ...) do
        local value = select(i, ...)
        if type(value) == "table" and value ~= null then
            local meta = getmetatable(value)
            if type(meta) ~= "table" or not meta.__tostring then
                error("bad argument #" .. i + 1 .. " to 'log' (expected table to have __tostring metamethod)", 3)
            end
        end
        parts[i] = tostring(value)
    end
    N.log(level, concat(parts))
end

local ngx = {
    null = null,
    OK = 0, ERROR = -1, AGAIN = -2, DONE = -4, DECLINED = -5,
    log = function(level, ...)
        if type(level) ~= "number" then
            error("bad argument #1 to 'log' (number expected, got " .. type(level) .. ")", 2)
        end
        if level < 0 or level > 8 then error("bad argument #1 to 'log' (bad log level: " .. level .. ")", 2) end
        return log_at(level, ...)
    end,
    now = N.now, time = N.time, today = N.today, localtime = N.localtime, utctime = N.utctime,
    update_time = function() end,
    http_time = N.http_time, cookie_time = N.cookie_time, parse_http_time = N.parse_http_time,
    md5 = N.md5, md5_bin = N.md5_bin, sha1_bin = N.sha1_bin, hmac_sha1 = N.hmac_sha1,
    crc32_short = N.crc32, crc32_long = N.crc32,
    encode_base64 = N.encode_base64,
    decode_base64 = N.decode_base64,
    escape_uri = N.escape_uri, unescape_uri = N.unescape_uri,
    quote_sql_str = N.quote_sql_str,
    get_phase = N.phase,
    is_subrequest = false,
}

for name, level in pairs(levels) do ngx[name] = level end

for name, number in pairs({
    GET = 2, HEAD = 4, POST = 8, PUT = 16, DELETE = 32, MKCOL = 64, COPY = 128, MOVE = 256,
    OPTIONS = 512, PROPFIND = 1024, PROPPATCH = 2048, LOCK = 4096, UNLOCK = 8192, PATCH = 16384,
    TRACE = 32768,
    CONTINUE = 100, SWITCHING_PROTOCOLS = 101, OK = 200, CREATED = 201, ACCEPTED = 202,
    NO_CONTENT = 204, PARTIAL_CONTENT = 206, SPECIAL_RESPONSE = 300, MOVED_PERMANENTLY = 301,
    MOVED_TEMPORARILY = 302, SEE_OTHER = 303, NOT_MODIFIED = 304, TEMPORARY_REDIRECT = 307,
    PERMANENT_REDIRECT = 308, BAD_REQUEST = 400, UNAUTHORIZED = 401, PAYMENT_REQUIRED = 402,
    FORBIDDEN = 403, NOT_FOUND = 404, NOT_ALLOWED = 405, NOT_ACCEPTABLE = 406,
    REQUEST_TIMEOUT = 408, CONFLICT = 409, GONE = 410, UPGRADE_REQUIRED = 426,
    TOO_MANY_REQUESTS = 429, CLOSE = 444, ILLEGAL = 451, INTERNAL_SERVER_ERROR = 500,
    METHOD_NOT_IMPLEMENTED = 501, BAD_GATEWAY = 502, SERVICE_UNAVAILABLE = 503,
    GATEWAY_TIMEOUT = 504, VERSION_NOT_SUPPORTED = 505, INSUFFICIENT_STORAGE = 507,
}) do
    ngx["HTTP_" .. name] = number
end

local method_names = {}
for _, name in ipairs({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"}) do
    method_names[ngx["HTTP_" .. name]] = name
end

local function flatten(out, value, what, depth)
    if type(value) == "table" then
        if depth > 32 then error("bad argument to '" .. what .. "' (tables too deep)", 0) end
        for i = 1, #value do flatten(out, value[i], what, depth + 1) end
    else
        out[#out + 1] = text_of(value, what)
    end
end

local function put_out(what, line_end, ...)
    local out = {}
    for i = 1, select("#", ...) do flatten(out, (select(i, ...)), what, 0) end
    out[#out + 1] = line_end
    local why = N.say(concat(out))
    if why then error(why, 3) end
    return 1
end

function ngx.say(...) return put_out("say", "\n", ...) end
function ngx.print(...) return put_out("print", "", ...) end
function ngx.flush() return 1 end
function ngx.eof() return 1 end
function ngx.send_headers() return 1 end

function ngx.exit(status)
    if status == nil then error("bad argument #1 to 'exit' (number expected, got nil)", 2) end
    status = tonumber(status)
    if not status then error("bad argument #1 to 'exit' (number expected)", 2) end
    if N.exit(status) then return co_yield(OP, "exit") end
end

function ngx.redirect(uri, status)
    status = status or 302
    if status ~= 301 and status ~= 302 and status ~= 303 and status ~= 307 and status ~= 308 then
        error("only ngx.HTTP_MOVED_TEMPORARILY, ngx.HTTP_MOVED_PERMANENTLY, ngx.HTTP_PERMANENT_REDIRECT, "
            .. "ngx.HTTP_SEE_OTHER, and ngx.HTTP_TEMPORARY_REDIRECT are allowed", 2)
    end
    N.header_set("Location", {tostring(uri)})
    return ngx.exit(status)
end

function ngx.sleep(seconds)
    seconds = tonumber(seconds)
    if not seconds or seconds < 0 or seconds ~= seconds then
        error("invalid sleep duration \"" .. tostring(seconds) .. "\"", 2)
    end
    wait("sleep", seconds)
end

function ngx.encode_args(args)
    if type(args) ~= "table" then
        error("bad argument #1 to 'encode_args' (table expected, got " .. type(args) .. ")", 2)
    end
    return N.encode_args(args)
end

function ngx.decode_args(text, max)
    return N.decode_args(text, max or 100)
end

-- Request
local header_names = {
    __index = function(t, key)
        if type(key) ~= "string" then return nil end
        local lower = str_lower((N.dashed(key)))
        if lower == key then return nil end
        return rawget(t, lower)
    end,
    __metatable = false,
}

local function headers_of(flat, raw)
    if raw then return flat end
    return setmetatable(flat, header_names)
end

local function strings_of(value)
    if value == nil or value == null then return nil end
    if type(value) ~= "table" then return {tostring(value)} end
    local all = {}
    for i = 1, #value do all[i] = tostring(value[i]) end
    return all
end

local function checked_name(name, what)
    local kind = type(name)
    if kind ~= "string" and kind ~= "number" then
        error("bad argument #1 to '" .. what .. "' (string expected, got " .. kind .. ")", 3)
    end
    return tostring(name)
end

local req = {
    get_headers = function(max, raw) return headers_of(N.req_headers(max or 100, raw or false), raw) end,
    set_header = function(name, value) N.req_set_header(checked_name(name, "set_header"), strings_of(value)) end,
    clear_header = function(name) N.req_set_header(checked_name(name, "clear_header"), nil) end,
    add_header = function(name, value) N.req_add_header(checked_name(name, "add_header"), strings_of(value)) end,
    get_uri_args = function(max)
        return N.decode_args(N.var_get("args") or "", max or 100)
    end,
    set_uri_args = function(args)
        if type(args) == "table" then args = N.encode_args(args) end
        N.set_query(tostring(args or ""))
    end,
    read_body = function() return wait("read_body") end,
    discard_body = function() end,
    get_body_data = function() return N.body() end,
    get_body_file = function() return nil end,
    set_body_data = function(data)
        local why = N.set_body(data)
        if why then error(why, 2) end
    end,
    get_post_args = function(max)
        local body = N.body()
        if not body then return {} end
        return N.decode_args(body, max or 100)
    end,
    get_method = function() return N.var_get("request_method") end,
    set_method = function(method)
        local name = type(method) == "string" and method or method_names[method]
        if not name or not N.set_method(name) then
            error("unsupported HTTP method: " .. tostring(method), 2)
        end
    end,
    set_uri = function(uri, jump)
        if jump then error("ngx.req.set_uri with jump is not there", 2) end
        if type(uri) ~= "string" or uri == "" then error("attempt to use zero-length uri", 2) end
        N.set_uri(uri)
    end,
    http_version = N.http_version,
    start_time = N.start_time,
    raw_header = N.raw_header,
    is_internal = function() return false end,
}
ngx.req = shared(req, "ngx.req")

local function resp_set(name, value)
    name = N.dashed(tostring(name))
    N.header_set(name, strings_of(value))
end

local resp = {
    get_headers = function(max, raw) return headers_of(N.resp_headers(max or 100, raw or false), raw) end,
    add_header = function(name, value) N.header_add(tostring(name), strings_of(value)) end,
}
ngx.resp = shared(resp, "ngx.resp")

local function fixed(name, index, newindex)
    local proxy = setmetatable({}, {
        __index = index,
        __newindex = newindex or function() error(name .. " cannot be changed", 2) end,
        __metatable = false,
    })
    protected[proxy] = true
    return proxy
end

ngx.header = fixed("ngx.header", function(_, name)
    return N.header_get(N.dashed(tostring(name)))
end, function(_, name, value)
    resp_set(name, value)
end)

local function var_get(name)
    if type(name) ~= "string" then
        if type(name) == "number" then return nil end
        error("bad variable name", 3)
    end
    return N.var_get(name)
end

ngx.var = fixed("ngx.var", function(_, name)
    -- nginx's own follows what proxy-rewrite did; ctx.var keeps the client's.
    return name == "uri" and N.nginx_uri() or var_get(name)
end, function(_, name, value)
    if value ~= nil then value = tostring(value) end
    local why = N.var_set(tostring(name), value)
    if why then error(why, 2) end
end)

ngx.arg = fixed("ngx.arg", function(_, i)
    return N.arg(i)
end, function(_, i, value)
    local why
    if i == 1 then
        if value == nil or value == null then value = "" end
        if type(value) == "table" then
            local out = {}
            flatten(out, value, "arg", 0)
            value = concat(out)
        end
        why = N.set_arg(tostring(value))
    elseif i == 2 then
        N.cut(value and true or false)
    else
        why = "bad argument index"
    end
    if why then error(why, 2) end
end)

ngx.config = shared({
    subsystem = "http", debug = false, ngx_lua_version = 10028, nginx_version = 1027001,
    prefix = function() return "" end, nginx_configure = function() return "" end,
}, "ngx.config")
ngx.worker = shared({
    id = N.worker_id, count = N.worker_count, pid = N.pid, exiting = function() return false end,
}, "ngx.worker")
local function timer(what)
    local every = what == "every"
    return function(delay, f, ...)
        delay = tonumber(delay)
        if not delay or delay ~= delay or delay < 0 then
            error("bad argument #1 to '" .. what .. "' (number expected)", 2)
        end
        if every and delay < 0.001 then return nil, "delay cannot be zero" end
        if type(f) ~= "function" then error("Lua function expected", 2) end
        local args, n = {...}, select("#", ...)
        return N.timer(delay, every, function(premature) return f(premature, unpack(args, 1, n)) end)
    end
end

ngx.timer = shared({
    at = timer("at"), every = timer("every"),
    pending_count = function() return (N.timers()) end,
    running_count = function() return (select(2, N.timers())) end,
}, "ngx.timer")
ngx.socket = shared({
    tcp = function() error("sockets are not available: use resty.http", 2) end,
    udp = function() error("sockets are not available: use resty.http", 2) end,
    connect = function() error("sockets are not available: use resty.http", 2) end,
}, "ngx.socket")
ngx.location = shared({
    capture = function() error("subrequests are not available: use resty.http", 2) end,
    capture_multi = function() error("subrequests are not available: use resty.http", 2) end,
}, "ngx.location")
function ngx.exec() error("internal redirects are not available", 2) end
function ngx.on_abort() return nil, "not available" end

-- Zones that all cores share
local zone_names = setmetatable({}, {__mode = "k"})

local function zone_of(zone)
    local name = zone_names[zone]
    if not name then error("bad \"zone\" argument", 3) end
    return name
end

local zone_methods = {
    flush_all = function(zone) N.zone_flush(zone_of(zone), false, 0) end,
    flush_expired = function(zone, max) return N.zone_flush(zone_of(zone), true, tonumber(max) or 0) end,
    get_keys = function(zone, max) return N.zone_keys(zone_of(zone), tonumber(max) or 1024) end,
    capacity = function(zone) return (N.zone_space(zone_of(zone))) end,
    free_space = function(zone) return (select(2, N.zone_space(zone_of(zone)))) end,
}
for _, op in ipairs({
    "get", "get_stale", "set", "safe_set", "add", "safe_add", "replace", "delete", "incr",
    "lpush", "rpush", "lpop", "rpop", "llen", "ttl", "expire",
}) do
    zone_methods[op] = function(zone, key, a, b, c) return N.zone_do(zone_of(zone), op, key, a, b, c) end
end

local zones = {}
ngx.shared = fixed("ngx.shared", function(_, name)
    if type(name) ~= "string" or not N.zone_has(name) then return nil end
    local zone = zones[name]
    if not zone then
        zone = shared(zone_methods, "ngx.shared." .. name)
        zones[name], zone_names[zone] = zone, name
    end
    return zone
end)

-- Regular expressions
local function replaced(value)
    local kind = type(value)
    if kind ~= "string" and kind ~= "number" then
        error("string or number expected as the result of the replacement function, got " .. kind, 0)
    end
    return tostring(value)
end

local function re_sub(s, regex, repl, options, global)
    s = tostring(s)
    if type(repl) ~= "function" then
        local out, n = N.re_sub(s, regex, tostring(repl), options or "", global)
        if not out then return nil, nil, n end
        return out, n
    end
    local out, n, copied, at, count = {}, 0, 1, 1, 0
    while at do
        local caps, from, to, next_at = N.re_match(s, regex, options or "", at)
        if caps == nil then
            if from then return nil, nil, from end
            break
        end
        count = count + 1
        out[n + 1], out[n + 2] = str_sub(s, copied, from - 1), replaced(repl(caps))
        n, copied, at = n + 2, to + 1, next_at
        if not global then break end
    end
    out[n + 1] = str_sub(s, copied)
    return concat(out), count
end

local re = {
    match = function(s, regex, options, ctx, res)
        local at = ctx and ctx.pos or 1
        local caps, from, to = N.re_match(tostring(s), regex, options or "", at)
        if caps == nil then return nil, from end
        if ctx then ctx.pos = to + 1 end
        if res then
            clear(res)
            for key, value in next, caps do res[key] = value end
            return res
        end
        return caps
    end,
    find = function(s, regex, options, ctx, nth)
        local at = ctx and ctx.pos or 1
        local from, to, err = N.re_find(tostring(s), regex, options or "", at, nth or 0)
        if ctx and to then ctx.pos = to + 1 end
        return from, to, err
    end,
    gmatch = function(s, regex, options)
        s = tostring(s)
        local at = 1
        return function()
            if not at then return nil end
            local caps, from, _, next_at = N.re_match(s, regex, options or "", at)
            at = next_at
            if caps == nil then return nil, from end
            return caps
        end
    end,
    sub = function(s, regex, repl, options) return re_sub(s, regex, repl, options, false) end,
    gsub = function(s, regex, repl, options) return re_sub(s, regex, repl, options, true) end,
}
ngx.re = shared(re, "ngx.re")

local function re_split(s, regex, options, ctx, max, res)
    res = res or {}
    local n, copied, at = 0, 1, ctx and ctx.pos or 1
    copied = at
    while at and (not max or max <= 0 or n < max - 1) do
        local from, to, err = N.re_find(s, regex, options or "", at, 0)
        if err then return nil, err end
        if not from then break end
        if to < from then
            -- Empty matches split between characters.
            if from > #s then break end
            n = n + 1
            res[n] = str_sub(s, copied, from)
            copied, at = from + 1, from + 1
            if copied > #s then copied = nil break end
        else
            n = n + 1
            res[n] = str_sub(s, copied, from - 1)
            copied, at = to + 1, to + 1
        end
    end
    if copied then
        n = n + 1
        res[n] = str_sub(s, copied)
    end
    res[n + 1] = nil
    return res
end

-- What the `ngx` of an environment finds: parts of the request by name, all else above.
local ngx_dynamic = {
    status = N.status,
    headers_sent = N.headers_sent,
    ctx = function() return (N.ctx(2)) end,
}
local ngx_meta = {
    __index = function(_, key)
        local dynamic = ngx_dynamic[key]
        if dynamic then return dynamic() end
        return ngx[key]
    end,
    __newindex = function(t, key, value)
        if key == "status" then
            local why = N.set_status(tonumber(value) or 0)
            if why then error(why, 2) end
        elseif key == "ctx" then
            N.set_ctx(value)
        else
            rawset(t, key, value)
        end
    end,
    __metatable = false,
}

-- The context of a request --------------------------------------------------------------------

local var_meta = {
    __index = function(t, name)
        local ctx = rawget(t, "_ctx")
        local registered = rawget(ctx, "_registered")
        local custom = registered and registered[name]
        if custom then return custom(ctx) end
        if name == "_cache" then return t end
        return var_get(name)
    end,
    __newindex = function(t, name, value)
        if value == nil then return end
        if N.var_set(tostring(name), tostring(value)) then
            rawset(t, name, value)
            -- Differs: conditions, keys and logs find it, unless the gateway has a variable of that
            -- name; in APISIX they find it then, too.
            if type(name) == "string" and N.var_is_free(name) then N.registers() end
        end
    end,
    __metatable = false,
}

local ctx_meta = {
    __index = function(t, key)
        if key == "matched_route" or key == "matched_upstream" then
            local value = N.route()
            if not value then return nil end
            local route = {
                key = "/apisix/routes/" .. tostring(value.id), value = value, has_domain = false,
                modifiedIndex = 0, createdIndex = 0, orig_modifiedIndex = 0,
            }
            rawset(t, "matched_route", route)
            return route
        end
        if key == "curr_req_matched" then
            local matched = N.matched()
            if matched then rawset(t, key, matched) end
            return matched
        end
        if key == "jwt_auth_payload" then
            local claims = N.ctx_field(key)
            if claims then rawset(t, key, claims) end
            return claims
        end
        return N.ctx_field(key)
    end,
    __metatable = false,
}

-- `ctx` and `ngx.ctx` of a request, kept under this number.
local function new_ctx(at)
    local ctx = setmetatable({}, ctx_meta)
    ctx.var = setmetatable({_ctx = ctx}, var_meta)
    KEPT[at] = {ctx, {api_ctx = ctx}}
end

-- JSON ----------------------------------------------------------------------------------------

local empty_array_mt, array_mt = shared({}, "cjson.empty_array_mt"), shared({}, "cjson.array_mt")
local empty_array = shared({}, "cjson.empty_array")
N.json_marks(empty_array, array_mt, empty_array_mt)

local function json_encode(value)
    local text, why = N.json_encode(value)
    if not text then return nil, why end
    return text
end

local function json_decode(text)
    if type(text) ~= "string" then
        return nil, "bad argument #1 to 'decode' (string expected, got " .. type(text) .. ")"
    end
    return N.json_decode(text, false)
end

local cjson_common = {
    null = null, empty_array = empty_array, empty_array_mt = empty_array_mt, array_mt = array_mt,
    _NAME = "cjson", _VERSION = "2.1.0.14",
}
for _, name in ipairs({
    "encode_empty_table_as_object", "encode_sparse_array", "encode_max_depth", "decode_max_depth",
    "encode_number_precision", "encode_keep_buffer", "encode_invalid_numbers",
    "decode_invalid_numbers", "decode_array_with_array_mt", "encode_escape_forward_slash",
    "encode_skip_unsupported_value_types", "encode_indent",
}) do
    cjson_common[name] = function(...) return ... end
end

local cjson_safe, cjson = shallow(cjson_common), shallow(cjson_common)
cjson_safe.encode, cjson_safe.decode = json_encode, json_decode
function cjson.encode(value)
    local text, why = json_encode(value)
    if not text then error(why, 2) end
    return text
end
function cjson.decode(text)
    local value, why = json_decode(text)
    if why then error(why, 2) end
    return value
end
function cjson.new() return shared(cjson, "cjson") end
function cjson_safe.new() return shared(cjson_safe, "cjson.safe") end

-- HTTP client ---------------------------------------------------------------------------------

local client = {}
local client_meta = {__index = client, __metatable = false}

function client:set_timeout(ms) self.timeouts = {ms, ms, ms} return true end
function client:set_timeouts(connect, send, read) self.timeouts = {connect, send, read} return true end
function client:set_keepalive() return 1 end
function client:close() return 1 end
function client:get_reused_times() return 0 end
function client:set_proxy_options() error("proxies are not available", 2) end
function client:ssl_handshake() self.scheme = "https" return true end

function client:connect(options, port)
    if type(options) == "table" then
        self.scheme, self.host, self.port = options.scheme or "http", options.host, options.port
        self.ssl_verify = options.ssl_verify
    else
        self.scheme, self.host, self.port = "http", options, port
    end
    if type(self.host) ~= "string" then return nil, "bad host" end
    return true
end

function client:parse_uri(uri)
    local m = N.parse_url(tostring(uri))
    if not m then return nil, "bad uri: " .. tostring(uri) end
    return {m.scheme, m.host, m.port, m.path, m.query}
end

local function called(self, url, options)
    options = options or {}
    local query = options.query
    if type(query) == "table" then query = N.encode_args(query) end
    local body = options.body
    if type(body) == "table" then body = concat(body) end
    if type(body) == "function" then
        local parts = {}
        for part in body do parts[#parts + 1] = part end
        body = concat(parts)
    end
    local headers = {}
    for name, value in pairs(options.headers or {}) do
        if type(name) == "string" then headers[name] = strings_of(value) end
    end
    local verify = options.ssl_verify
    if verify == nil then verify = self.ssl_verify end
    local times = self.timeouts or {}
    local answer, why = wait("http", {
        url = url, method = options.method or "GET", query = query, body = body, headers = headers,
        ssl_verify = verify ~= false, keepalive = options.keepalive ~= false,
        connect = times[1], send = times[2], read = times[3],
    })
    if not answer then return nil, why end
    setmetatable(answer.headers, header_names)
    answer.has_body = true
    function answer.read_body() return answer.body end
    function answer.body_reader()
        local body = answer.body
        answer.body = nil
        return body
    end
    function answer.read_trailers() return {} end
    return answer
end

function client:request_uri(url, options)
    return called(self, tostring(url), options)
end

function client:request(options)
    if not self.host then return nil, "not connected" end
    local path = options.path or "/"
    local authority = self.host
    if self.port then authority = authority .. ":" .. tostring(self.port) end
    return called(self, self.scheme .. "://" .. authority .. path, options)
end

local http = {_VERSION = "0.17", new = function() return setmetatable({}, client_meta) end}

-- apisix.core ---------------------------------------------------------------------------------

local core_log = {}
for name, level in pairs(levels) do
    if name ~= "STDERR" then
        local lower = name == "ERR" and "error" or str_lower(name)
        core_log[lower] = function(...) return log_at(level, ...) end
    end
end
function core_log.new() return shared(core_log, "core.log") end
function core_log.delay_exec(f, ...)
    local args, n = {...}, select("#", ...)
    return setmetatable({}, {__tostring = function() return tostring((f(unpack(args, 1, n)))) end})
end

local core_json = {array_mt = array_mt}
core_json.encode, core_json.decode = json_encode, json_decode
function core_json.stably_encode(value) return N.json_encode(value, true) end
function core_json.delay_encode(value)
    return setmetatable({}, {__tostring = function() return (json_encode(value)) or "" end})
end

local core_request = {}
function core_request.headers() return req.get_headers(0) end
function core_request.header(_, name)
    local value = req.get_headers(0)[name]
    if type(value) == "table" then return value[1] end
    return value
end
local function change_header(add, ctx, name, value)
    if type(ctx) == "string" then name, value = ctx, name end
    if type(name) ~= "string" then
        error(str_format("invalid header name %q: got %s, expected string", tostring(name), type(name)), 3)
    end
    if add then req.add_header(name, value) else req.set_header(name, value) end
end
function core_request.set_header(ctx, name, value) change_header(false, ctx, name, value) end
function core_request.add_header(ctx, name, value) change_header(true, ctx, name, value) end
function core_request.get_ip() return N.var_get("realip_remote_addr") or N.var_get("remote_addr") or "" end
function core_request.get_remote_client_ip() return N.var_get("remote_addr") or "" end
function core_request.get_remote_client_port() return tonumber(N.var_get("remote_port")) end
function core_request.get_uri_args() return req.get_uri_args(0) end
function core_request.set_uri_args(_, args) return req.set_uri_args(args) end
function core_request.get_post_args()
    wait("read_body")
    return req.get_post_args(0)
end
function core_request.get_body(max)
    local announced = tonumber(N.var_get("http_content_length"))
    local function too_large(size)
        if max and size > max then
            return "request size " .. size .. " is greater than the maximum size " .. max .. " allowed"
        end
    end
    local why = announced and too_large(announced)
    if why then return nil, why end
    wait("read_body")
    local body = N.body()
    if not body then return nil end
    why = too_large(#body)
    if why then return nil, why end
    return body
end
function core_request.get_json_request_body_table(max)
    local body, why = core_request.get_body(max)
    if not body then
        return nil, {message = "could not get body: " .. (why or "request body is empty")}
    end
    local value
    value, why = json_decode(body)
    if value == nil then
        return nil, {message = "could not parse JSON request body: " .. (why or "invalid JSON")}
    end
    return value
end
function core_request.get_scheme() return N.var_get("scheme") or "" end
function core_request.get_host() return N.var_get("host") or "" end
function core_request.get_port() return tonumber(N.var_get("server_port")) end
function core_request.get_path() return N.var_get("uri") or "" end
function core_request.get_method() return N.var_get("request_method") end
function core_request.get_http_version() return N.http_version() end

local core_response = {}
local function respond(code, ...)
    local parts = {}
    if code ~= nil and type(code) ~= "number" then
        parts[1], code = code, nil
    end
    if code then ngx_meta.__newindex({}, "status", code) end
    local out = {}
    if parts[1] ~= nil then out[1] = parts[1] end
    for i = 1, select("#", ...) do
        local value = select(i, ...)
        if value ~= nil then out[#out + 1] = value end
    end
    for i = 1, #out do
        if type(out[i]) == "table" then
            local text, why = json_encode(out[i])
            if not text then error("failed to encode data: " .. why, 2) end
            out[i] = text .. "\n"
        else
            out[i] = tostring(out[i])
        end
    end
    if #out > 0 then
        local why = N.say(concat(out))
        if why then error(why, 2) end
    end
    if code then return ngx.exit(code) end
end
core_response.exit = respond
function core_response.say(...) return respond(nil, ...) end
local function change_response_header(add, ...)
    local n = select("#", ...)
    if n == 1 then
        local headers = ...
        if type(headers) ~= "table" then
            resp_set(headers, nil)
            return
        end
        for name, value in pairs(headers) do
            if add then resp.add_header(name, value) else resp_set(name, value) end
        end
        return
    end
    for i = 1, n, 2 do
        local name, value = select(i, ...)
        if add then resp.add_header(name, value) else resp_set(name, value) end
    end
end
function core_response.set_header(...) change_response_header(false, ...) end
function core_response.add_header(...) change_response_header(true, ...) end
function core_response.clear_header_as_body_modified()
    for _, name in ipairs({"Content-Length", "Content-Encoding", "Last-Modified", "ETag"}) do
        resp_set(name, nil)
    end
end
function core_response.get_upstream_status()
    return tonumber(str_sub(N.var_get("upstream_status") or "", -3))
end
function core_response.hold_body_chunk(ctx, keep_copy, max, key)
    local piece, eof = N.arg(1), N.arg(2)
    local buffers = rawget(ctx, "_body_buffer")
    if not buffers then
        buffers = {}
        rawset(ctx, "_body_buffer", buffers)
    end
    -- Each plugin gathers for itself.
    key = key or rawget(ctx, "_plugin_name") or 1
    local held = buffers[key]
    if not held then
        held = {n = 0, bytes = 0}
        buffers[key] = held
    end
    if held.done then return nil end
    if piece and piece ~= "" then
        held.n = held.n + 1
        held[held.n] = piece
        held.bytes = held.bytes + #piece
    end
    local full = max and held.bytes >= max
    if full or eof then
        local whole = concat(held, "", 1, held.n)
        if full then
            -- What comes behind it goes out as it is.
            buffers[key] = {done = true}
            return str_sub(whole, 1, max)
        end
        buffers[key] = nil
        return whole
    end
    if not keep_copy then N.set_arg("") end
    return nil
end

local core_table = {
    insert = tables.insert, insert_tail = function(t, ...)
        local n = #t
        for i = 1, select("#", ...) do
            n = n + 1
            t[n] = (select(i, ...))
        end
        return n
    end,
    concat = concat, sort = tables.sort, clear = clear, nkeys = nkeys, deepcopy = deepcopy, clone = shallow,
    isarray = isarray, isempty = function(t) return next(t) == nil end,
    new = function() return {} end, array_mt = array_mt, move = tables.move,
    set = function(t, ...)
        for i = 1, select("#", ...) do t[i] = (select(i, ...)) end
        return select("#", ...)
    end,
    array_find = function(t, value)
        if type(t) ~= "table" then return nil end
        for i, found in ipairs(t) do
            if found == value then return i end
        end
        return nil
    end,
    merge = function(t, over)
        for key, value in pairs(over) do t[key] = value end
        return t
    end,
    try_read_attr = function(t, ...)
        for i = 1, select("#", ...) do
            if type(t) ~= "table" then return nil end
            t = t[(select(i, ...))]
        end
        return t
    end,
    pool_new = function() return {} end, pool_fetch = function() return {} end,
    pool_release = function() end,
}

local core_string = {}
for name, f in pairs(strings) do core_string[name] = f end
function core_string.find(text, needle, from) return find(text, needle, from, true) end
function core_string.has_prefix(text, prefix) return str_sub(text, 1, #prefix) == prefix end
function core_string.has_suffix(text, suffix) return suffix == "" or str_sub(text, -#suffix) == suffix end
function core_string.rfind_char(text, char, from)
    local byte = str_byte(char)
    for i = from or #text, 1, -1 do
        if str_byte(text, i) == byte then return i end
    end
    return nil
end
function core_string.encode_base64(text) return N.encode_base64(text) end
function core_string.compress_script(text) return text end

local core_ctx = {
    register_var = function(name, f)
        if type(name) ~= "string" then error("bad argument #1 to 'register_var' (string expected)", 2) end
        if type(f) ~= "function" then error("bad argument #2 to 'register_var' (function expected)", 2) end
        -- Differs: APISIX keeps it for all requests. It looks for arguments, cookies and fields first,
        -- too, but nginx's variables it replaces.
        if not N.var_is_free(name) then return end
        local ctx = N.ctx(1)
        if not ctx then error("no request found", 2) end
        local registered = rawget(ctx, "_registered")
        if type(registered) ~= "table" then
            registered = {}
            rawset(ctx, "_registered", registered)
        end
        registered[name] = f
        N.registers()
    end,
    get_var = function(name) return var_get(name) end,
}

local core_utils = {
    uuid = N.uuid,
    gethostname = function() return N.var_get("hostname") end,
    split_uri = function(uri) return uri end,
    resolve_var = function(template, vars)
        if not template then return template end
        return (strings.gsub(template, "%$({?)([%w_]+)(}?)", function(open, name, close)
            local value = vars[name]
            if value == nil then return "" end
            if open == "" then return tostring(value) .. close end
            return tostring(value)
        end))
    end,
}

local core = {
    log = shared(core_log, "core.log"), json = shared(core_json, "core.json"),
    request = shared(core_request, "core.request"), response = shared(core_response, "core.response"),
    table = shared(core_table, "core.table"), string = shared(core_string, "core.string"),
    ctx = shared(core_ctx, "core.ctx"), utils = shared(core_utils, "core.utils"),
    sleep = ngx.sleep, empty_tab = shared({}, "core.empty_tab"), version = shared({VERSION = "3.18.0"}, "core.version"),
    id = shared({get = N.uuid}, "core.id"),
}

-- net.url, as far as scripts take addresses apart
local url = {}
function url.parse(text)
    local parts = N.parse_net_url(tostring(text))
    return parts
end

-- Modules -------------------------------------------------------------------------------------

local resty_string = {
    to_hex = N.to_hex, atoi = tonumber,
}
local bits = {}
for name, f in pairs(bit) do bits[name] = f end

local modules = {
    ["apisix.core"] = core,
    ["apisix.core.log"] = core_log, ["apisix.core.json"] = core_json,
    ["apisix.core.request"] = core_request, ["apisix.core.response"] = core_response,
    ["apisix.core.table"] = core_table, ["apisix.core.string"] = core_string,
    ["apisix.core.ctx"] = core_ctx, ["apisix.core.utils"] = core_utils,
    ["cjson"] = cjson, ["cjson.safe"] = cjson_safe,
    ["resty.http"] = http, ["resty.string"] = resty_string,
    ["net.url"] = url,
    ["bit"] = bits,
    ["ngx.re"] = {split = re_split, opt = function() end},
    ["ngx.req"] = {add_header = req.add_header},
    ["ngx.resp"] = {add_header = resp.add_header, set_status = N.set_status},
    ["ngx.errlog"] = {raw_log = function(level, text) log_at(level, text) end},
    ["ngx.base64"] = {
        encode_base64url = N.encode_base64url, decode_base64url = N.decode_base64url,
    },
    ["resty.core"] = {version = "0.1.28"},
}
local functions = {
    ["table.new"] = function() return {} end, ["table.clear"] = clear, ["table.nkeys"] = nkeys,
    ["table.clone"] = shallow, ["table.isempty"] = function(t) return next(t) == nil end,
    ["table.isarray"] = isarray,
}
for name, module in pairs(modules) do modules[name] = shared(module, name) end

-- Environments --------------------------------------------------------------------------------

-- LuaJIT calls an error handler where the error was raised. Where that is the hook that counts
-- instructions, nothing would count those of the handler: it is called when all is unwound.
local function handled(handler, ok, ...)
    if ok then return true, ... end
    return false, handler(...)
end

local globals = {
    xpcall = function(f, handler, ...) return handled(handler, pcall(f, ...)) end,
    assert = assert, error = error, ipairs = ipairs, next = next, pairs = pairs, pcall = pcall,
    rawequal = rawequal, rawget = rawget, select = select, tonumber = tonumber, tostring = tostring,
    type = type, unpack = unpack, _VERSION = _VERSION,
    setmetatable = setmetatable, getmetatable = getmetatable,
    rawset = function(t, key, value)
        if protected[t] then error("this table cannot be changed: it belongs to every script", 2) end
        return rawset(t, key, value)
    end,
    print = function(...)
        local parts = {}
        for i = 1, select("#", ...) do parts[i] = tostring((select(i, ...))) end
        N.log(levels.NOTICE, concat(parts, "\t"))
    end,
    collectgarbage = function(what)
        if what == "count" then return N.memory() end
        return 0
    end,
    gcinfo = N.memory,
}

local maths = {}
for name, value in pairs(math) do maths[name] = value end

local libraries = {
    string = library(strings), table = library(tables), math = library(maths), bit = library(bits),
    coroutine = library(coroutines),
    os = library({time = os.time, clock = os.clock, date = os.date, difftime = os.difftime}),
    ngx = function() return setmetatable({}, ngx_meta) end,
    jit = function() return {version = "LuaJIT 2.1", version_num = 20199, os = "Linux", arch = "x64",
        status = function() return false end, on = function() end, off = function() end, flush = function() end} end,
    package = function() return {loaded = {}, preload = {}, path = "", cpath = "", config = "/\n;\n?\n!\n-\n"} end,
}

local function loader(env)
    return function(text, name, _, own)
        if type(text) == "function" then
            local parts = {}
            while true do
                local part = text()
                if not part or part == "" then break end
                parts[#parts + 1] = part
            end
            text = concat(parts)
        end
        if type(text) ~= "string" then
            error("bad argument #1 to 'load' (string expected, got " .. type(text) .. ")", 2)
        end
        return N.load(text, name or text, own or env)
    end
end

local function requirer(env)
    return function(name)
        if type(name) ~= "string" then
            error("bad argument #1 to 'require' (string expected, got " .. type(name) .. ")", 2)
        end
        local package = env.package
        local known = package.loaded[name]
        if known ~= nil then return known end
        local found = modules[name] or functions[name]
        if found == nil and libraries[name] then found = env[name] end
        if found == nil then
            local preload = package.preload[name]
            local why
            if not preload then preload, why = N.load_file(name, env) end
            if not preload then
                error("module '" .. name .. "' not found: " .. (why or
                    "scripts have the modules of the documentation only; plugin_attr.serverless.package_path allows others"), 2)
            end
            found = preload(name)
            if found == nil then found = true end
        end
        package.loaded[name] = found
        return found
    end
end

local made = {
    load = loader, loadstring = loader, require = requirer,
    _G = function(env) return env end,
}

local env_meta = {
    __index = function(env, key)
        local value = globals[key]
        if value ~= nil then return value end
        local make = libraries[key] or made[key]
        if make then
            value = make(env)
            rawset(env, key, value)
            return value
        end
        return nil
    end,
    __metatable = false,
}

-- `("x"):rep(2)` finds its functions where no script can change them.
local string_meta = getmetatable("")
string_meta.__index = strings
string_meta.__metatable = false

return function() return setmetatable({}, env_meta) end, new_ctx,
    -- The value of a variable that functions made for the request of `ctx`.
    function(name, ctx)
        local value = rawget(ctx.var, name)
        if value == nil then
            local registered = rawget(ctx, "_registered")
            local custom = registered and registered[name]
            if not custom then return nil end
            value = custom(ctx)
        end
        if type(value) == "table" then return (json_encode(value)) end
        return value
    end,
    -- Calls a function, which logs have the name of that APISIX has for it. No more than two results:
    -- Rust has little room for what it holds.
    function(func, ...)
        local one, two = func(...)
        return one, two
    end,
    -- The same for a function of a kept configuration (a list of what the function gets, the plugin's
    -- name and the functions) in a request of this kept context. Numbers cost less than references.
    function(list, n, context)
        local list, ctx = KEPT[list], KEPT[context][1]
        rawset(ctx, "_plugin_name", list[2])
        local func = list[n]
        local one, two = func(list[1], ctx)
        return one, two
    end
