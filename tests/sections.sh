# The sections of tests/run.sh, which sets $logs, the folder of their logs, and reads this file: what runs one, in the
# foreground or beside others, and adds up what it printed.
mkdir -p "$logs"
# What failed, by name, for whoever sees the end of the output only
failures=$logs/failures.txt
: >"$failures"
# A function's variable of that name would be seen by all that it calls: the logs would be looked for elsewhere.
readonly logs failures
passed=0 failed=0 skipped=0
summary=()
declare -A jobs=() since=()

log_of() { echo "$logs/${1//[^a-z0-9.-]/-}.log"; }
# section NAME COUNTER COMMAND...: runs the command, shows its output, and lets the counter read it.
section() {
    local name=$1 counter=$2 began=$SECONDS log
    log=$(log_of "$name")
    shift 2
    printf '\n=== %s\n' "$name"
    "$@" 2>&1 | tee "$log"
    account "$name" "$counter" "$log" "${PIPESTATUS[0]}" $((SECONDS - began))
}
# start NAME COMMAND...: the same in the background, beside what comes next; shown and counted by finish
start() {
    local name=$1 log
    log=$(log_of "$name")
    shift
    # Here, and not by the command, which may come later than who reads it
    : >"$log"
    # Of root, a group of its own, which is ended as one: sudo may want the terminal.
    if [ "$(id -u)" = 0 ]; then setsid "$@" >>"$log" 2>&1 & else "$@" >>"$log" 2>&1 & fi
    jobs[$name]=$! since[$name]=$(date +%s)
}
# They hear it, with what they started, and take away what they made.
end_jobs() {
    [ "${#jobs[@]}" != 0 ] || return 0
    if [ "$(id -u)" = 0 ]; then kill -- "${jobs[@]/#/-}"; else kill "${jobs[@]}"; fi 2>/dev/null
    wait "${jobs[@]}"
}
trap end_jobs EXIT
# finish NAME COUNTER: shows what was started until it ends. It took the time until its last line. What was never started
# has failed.
finish() {
    local log status=0 shown began
    if [ -z "${jobs[$1]:-}" ]; then
        section "$1" "$2" bash -c 'echo "it was not started"; exit 1'
        return
    fi
    log=$(log_of "$1") began=${since[$1]}
    printf '\n=== %s\n' "$1"
    # Not until a process of that number ends: it may have ended long ago, and its number be another's.
    tail -n +1 -f "$log" &
    shown=$!
    wait "${jobs[$1]}" || status=$?
    # In these quotes bash takes the name as it is, with its spaces and apostrophes.
    unset 'jobs[$1]'
    # It looks once a second.
    sleep 2
    kill "$shown"
    wait "$shown" 2>/dev/null
    [ "$status" = 0 ] || echo "$1: ended with status $status"
    account "$1" "$2" "$log" "$status" $(($(stat -c %Y "$log") - began))
}
# account NAME COUNTER LOG STATUS SECONDS: adds up what the counter reads in the log, which prints "passed failed skipped".
# A command that fails without a counted failure counts as one, and so does one of which nothing can be counted.
account() {
    local p f s
    read -r p f s < <("$2" "$3" "$4")
    p=${p:-0} f=${f:-0} s=${s:-0}
    if [ "$f" = 0 ] && { [ "$4" != 0 ] || [ $((p + s)) = 0 ]; }; then f=1; fi
    [ "$f" = 0 ] || what_failed "$1" "$3" >>"$failures"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    summary+=("$(printf '%-32s %5d passed %3d failed %3d skipped %4d s' "$1" "$p" "$f" "$s" "$5")")
}
# what_failed NAME LOG: the failed tests of a section and why, or its last words
what_failed() {
    local lines
    lines=$(grep -E -A 4 'FAILED|^--- FAIL|\[FAIL\]| panicked at |^error(\[|:)' "$2" | cut -c 1-400 | head -n 60)
    printf -- '--- %s: failed\n%s\n' "$1" "${lines:-$(tail -n 20 "$2")}"
}
# skip NAME REASON: a section that isn't run, by name
skip() {
    printf '\n=== %s\nskipped: %s\n' "$1" "$2"
    skipped=$((skipped + 1))
    summary+=("$(printf '%-32s     0 passed   0 failed   1 skipped (%s)' "$1" "$2")")
}
# sum_up: the summary, of which the last line is "N passed, N failed, N skipped"; fails if anything did, if nothing was run,
# and if nobody waited for what was started
sum_up() {
    local name
    for name in "${!jobs[@]}"; do summary+=("$name: nobody waited for its end"); done
    if [ "$failed" = 0 ] && { [ ${#summary[@]} = 0 ] || [ ${#jobs[@]} != 0 ] || [ -s "$failures" ]; }; then failed=1; fi
    printf '\n=== summary\n'
    [ ${#summary[@]} = 0 ] || printf '%s\n' "${summary[@]}"
    cat "$failures"
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    [ "$failed" = 0 ]
}
