-- What Redis gives its scripts, beside Lua 5.1. A file's first statement names what it is given by the files before it.
std = "lua51"
read_globals = {"redis", "cjson", "KEYS", "ARGV"}
max_line_length = 150
files["billing/cell/lua"] = {max_line_length = 120}
