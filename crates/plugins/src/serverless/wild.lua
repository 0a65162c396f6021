-- Calls whatever scripts can reach with whatever `DATA` says: two bytes choose a function, each
-- further byte an argument, 255 ends the call. For the fuzz target and for the test of its findings.
local data = DATA
return function(conf, ctx)
    local functions, seen, names = {}, {}, {}
    local function gather(value, name, depth)
        if type(value) == "function" then
            -- Functions that only wait, and those that would run this file for ever.
            if name ~= "ngx.sleep" and name ~= "core.sleep" then
                functions[#functions + 1], names[#names + 1] = value, name
            end
        elseif type(value) == "table" and not seen[value] and depth < 4 then
            seen[value] = true
            local keys = {}
            pcall(function() for key in pairs(value) do keys[#keys + 1] = tostring(key) end end)
            table.sort(keys)
            for _, key in ipairs(keys) do pcall(gather, value[key], name .. "." .. key, depth + 1) end
        end
    end
    for _, name in ipairs({"string", "table", "math", "bit", "coroutine", "os"}) do
        for _, key in ipairs({
            "byte", "char", "find", "format", "gmatch", "gsub", "len", "lower", "match", "rep", "reverse",
            "sub", "upper", "concat", "insert", "maxn", "remove", "sort", "pack", "unpack", "move", "floor",
            "fmod", "random", "tobit", "bxor", "lshift", "tohex", "bswap", "create", "resume", "wrap", "status",
            "running", "yield", "date", "time",
        }) do
            gather(_G[name] and _G[name][key], name .. "." .. key, 0)
        end
    end
    for _, key in ipairs({
        "say", "print", "exit", "log", "md5", "md5_bin", "sha1_bin", "hmac_sha1", "crc32_long", "encode_base64",
        "decode_base64", "escape_uri", "unescape_uri", "encode_args", "decode_args", "quote_sql_str",
        "http_time", "cookie_time", "parse_http_time", "redirect", "get_phase", "on_abort",
    }) do
        gather(ngx[key], "ngx." .. key, 0)
    end
    for _, part in ipairs({"req", "resp", "re", "timer", "worker"}) do
        for _, key in ipairs({
            "get_headers", "set_header", "add_header", "clear_header", "get_uri_args", "set_uri_args",
            "get_body_data", "set_body_data", "get_post_args", "get_method", "set_method", "set_uri",
            "http_version", "start_time", "raw_header", "read_body", "match", "find", "gmatch", "sub", "gsub",
            "at", "every", "id", "count",
        }) do
            gather(ngx[part][key], part .. "." .. key, 0)
        end
    end
    local core = require("apisix.core")
    for _, part in ipairs({"json", "request", "response", "table", "string", "ctx", "utils", "log"}) do
        for _, key in ipairs({
            "encode", "decode", "delay_encode", "header", "headers", "get_body", "set_header", "add_header",
            "get_uri_args", "set_uri_args", "get_post_args", "get_ip", "get_host", "get_path", "exit", "say",
            "clear_header_as_body_modified", "hold_body_chunk", "insert_tail", "deepcopy", "merge", "set",
            "try_read_attr", "array_find", "has_prefix", "has_suffix", "rfind_char", "register_var",
            "resolve_var", "uuid", "error", "warn",
        }) do
            gather(core[part][key], "core." .. part .. "." .. key, 0)
        end
    end
    gather(require("cjson"), "cjson", 0)
    for _, key in ipairs({"encode", "decode", "new"}) do
        gather(require("cjson")[key], "cjson." .. key, 0)
        gather(require("cjson.safe")[key], "safe." .. key, 0)
    end
    for _, f in ipairs({
        assert, error, next, pcall, rawequal, rawget, rawset, select, setmetatable, getmetatable, tonumber,
        tostring, type, unpack, xpcall, load, loadstring, require, collectgarbage,
    }) do
        gather(f, "global", 0)
    end
    -- Whatever metatables are to be had, and what is in them.
    local function reach(value, name)
        local meta = getmetatable(value)
        if type(meta) == "table" then
            pcall(function() meta.__index = function() return "leaked" end end)
            gather(meta, name .. " metatable", 0)
        end
    end
    for name, value in pairs({
        headers = pcall(ngx.req.get_headers) and ngx.req.get_headers() or {},
        answer = pcall(ngx.resp.get_headers) and ngx.resp.get_headers() or {},
        ctx = ctx, vars = ctx.var, client = require("resty.http").new(), core = core,
        array = require("cjson").empty_array, array_mt = require("cjson").array_mt,
        decoded = require("cjson").decode("[1, {}]"), ngx = ngx, string = string, zone = ngx.shared.fuzz or {},
    }) do
        reach(value, name)
        pcall(table.insert, value, "leaked")
        pcall(rawset, value, "leaked", "leaked")
    end
    local values = {
        function() return nil end, function() return true end, function() return 0 end,
        function() return -1 end, function() return 0 / 0 end, function() return 1 / 0 end,
        function() return 2 ^ 31 end, function() return 1e15 end, function() return "" end,
        function() return data end, function() return ("%"):rep(40) end, function() return "a" end,
        function() return "(a*)*b" end, function() return "X-H\r\nY: 1" end, function() return {} end,
        function() return {data, {1, 2}, a = data} end, function() local t = {} t[1] = t return t end,
        -- Shared references: as many values as 2^n in the JSON of n tables.
        function() local t = {} for _ = 1, 60 do t = {t, t} end return t end,
        function() local t = {data} for _ = 1, 200 do t = {a = t, b = t} end return t end,
        function() local t = {} for i = 1, 20000 do t[i] = "v" .. i end return t end,
        function() return require("cjson").array_mt end, function() return setmetatable({1}, require("cjson").array_mt) end,
        function() return ngx end, function() return ngx.null end, function() return ctx end,
        function() return conf end, function() return _G end, function() return coroutine.create(error) end,
        function() return function(...) return ... end end, function() return setmetatable({}, {__index = error, __tostring = error, __gc = error}) end,
        function() return ngx.shared.fuzz end, function() return ngx.var end, function() return ngx.header end,
        function() return ngx.ctx end, function() return string.rep("x", 70000) end,
    }
    local last
    local at = 1
    while at < #data do
        local f = functions[(data:byte(at) * 256 + data:byte(at + 1)) % #functions + 1]
        at = at + 2
        local arguments, n = {}, 0
        while at <= #data and data:byte(at) ~= 255 and n < 6 do
            local kind = data:byte(at)
            n = n + 1
            if kind >= 250 then
                arguments[n] = last
            elseif kind >= 200 then
                arguments[n] = data:sub(at + 1, at + kind - 200)
            else
                arguments[n] = values[kind % #values + 1]()
            end
            at = at + 1
        end
        at = at + 1
        local ok, value = pcall(f, unpack(arguments, 1, n))
        last = value
        if type(value) == "function" then pcall(value, unpack(arguments, 1, n)) end
    end
end
