#!/usr/bin/env bash
# Claims about tests/sections.sh. Each runs in a shell and a folder of its own, and what it says at the end is compared.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
wrong=0

count_lines() { awk '/^passed/ { p++ } /^failed/ { f++ } /^skipped/ { s++ } END { print p + 0, f + 0, s + 0 }' "$1"; }
# claim NAME LAST-LINE: what stands on standard input is run with the sections, and ends with that line, and well if nothing
# of it failed.
claim() {
    local said last status=0 wanted=0
    [[ "$2" == *" 0 failed,"* ]] || wanted=1
    said=$(
        exec 2>&1
        logs=$folder/$1
        . ./sections.sh
        . /dev/stdin
        sum_up
    ) || status=$?
    last=$(tail -n 1 <<<"$said")
    if [ "$last" = "$2" ] && [ "$status" = "$wanted" ]; then
        echo "ok: $1"
    else
        # Not as it stands, since whoever reads this run's count would take it for that.
        printf 'FAILED: %s\nwanted: %s, exit code %s; exit code %s, and it said:\n%s\n' \
            "$1" "$2" "$wanted" "$status" "$(sed 's/^/    /' <<<"$said")"
        wrong=1
    fi
}

claim "what passed, failed and was skipped is added up" "2 passed, 1 failed, 1 skipped" <<'SECTIONS'
section one count_lines printf '%s\n' passed skipped
start two printf '%s\n' passed failed
finish two count_lines
SECTIONS

claim "a command that fails without saying so has failed" "1 passed, 1 failed, 0 skipped" <<'SECTIONS'
section one count_lines bash -c 'echo passed; exit 3'
SECTIONS

claim "a command that can't begin has failed" "0 passed, 2 failed, 0 skipped" <<'SECTIONS'
section one count_lines ./nothing-of-that-name
start two ./nothing-of-that-name
finish two count_lines
SECTIONS

claim "a command that shows nothing has failed" "0 passed, 1 failed, 0 skipped" <<'SECTIONS'
section one count_lines true
SECTIONS

claim "what runs beside others and leaves no log has failed" "0 passed, 1 failed, 0 skipped" <<'SECTIONS'
start one echo passed
wait "${jobs[one]}"
rm "$logs/one.log"
finish one count_lines
SECTIONS

claim "no function has its logs elsewhere" "1 passed, 0 failed, 0 skipped" <<'SECTIONS'
elsewhere() {
    local logs=/nowhere
    start one echo passed
    finish one count_lines
}
elsewhere
SECTIONS

claim "a run of nothing has failed" "0 passed, 1 failed, 0 skipped" <<'SECTIONS'
SECTIONS

claim "what was never started has failed" "0 passed, 1 failed, 0 skipped" <<'SECTIONS'
finish one count_lines
SECTIONS

claim "what nobody waited for has failed" "1 passed, 1 failed, 0 skipped" <<'SECTIONS'
start one sleep 60
section two count_lines echo passed
SECTIONS

claim "no function counts for itself" "1 passed, 1 failed, 0 skipped" <<'SECTIONS'
apart() {
    local failed=0
    section one count_lines echo failed
}
apart
section two count_lines echo passed
SECTIONS

exit "$wrong"
