#!/usr/bin/env bash
# Runs the tests in sections, goes on after a failure, and ends with a summary:
#     tests/run.sh [lint|unit|guest|contract|sanity|deploy|image|kubernetes]...
# The last line is "N passed, N failed, N skipped", added up from what the sections really printed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || set -- lint unit guest contract sanity deploy image kubernetes
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
target=${CARGO_TARGET_DIR:-$PWD/target}
logs=$target/test-logs
bins=$target/debug
export CARGO_TERM_COLOR=never
# The disks of the tests are files: in memory, where there is room, nothing waits for a real disk to be synced.
if [ -z "${TMPDIR:-}" ] && [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] && [ -w /dev/shm ] &&
    [ "$(df --output=avail -B1G /dev/shm | tail -n 1)" -ge 8 ]; then
    export TMPDIR=/dev/shm
fi
. tests/sections.sh
made='' image=''

count_check() { if [ "$2" = 0 ]; then echo 1 0 0; else echo 0 1 0; fi; }
# cargo's "test result: ok. 3 passed; 0 failed; 1 ignored"; a test that says "skipped: reason" and returns is no pass, and one
# that passes without a part of it says "skipped part: reason"
count_cargo() {
    awk '/^test result:/ { p += $4; f += $6; s += $8 } /^skipped: / { p--; s++ } /^skipped part: / { s++ } END { print p + 0, f + 0, s + 0 }' "$1"
}
# The guest has all that its tests need, but for a share where there is no virtiofsd: a test that lacks something else there
# has not shown it.
count_guest() {
    local p f s lacks
    read -r p f s < <(count_cargo "$1")
    lacks=$(grep '^skipped: ' "$1" | grep -cvE 'names no share|: this kernel has it$')
    echo "$p $((f + lacks)) $((s - lacks))"
}
count_go() {
    awk '/^--- PASS/ { p++ } /^--- FAIL/ { f++ } /^--- SKIP/ { s++ } END { print p + 0, f + 0, s + 0 }' "$1"
}
count_sanity() {
    awk '/^csi-sanity: / { p = $2; f = $4; s = $6 } END { print p + 0, f + 0, s + 0 }' "$1"
}

lint() {
    section "format" count_check cargo fmt --all --check
    section "lints" count_check cargo clippy --workspace --all-targets -- -D warnings
    section "shell syntax" count_check shell_syntax
    section "the sections themselves" count_check tests/sections_test.sh
    if cargo deny --version >/dev/null 2>&1; then
        section "dependencies" count_check cargo deny --all-features check
    else
        skip "dependencies" "cargo-deny is not installed (cargo install cargo-deny)"
    fi
}

# One by one: to bash all after the first are arguments of that.
shell_syntax() {
    local script
    for script in tests/{tools,root,run,sections,sections_test}.sh tests/guest/{run.sh,init} tests/kubernetes/{*.sh,worker/build.sh,worker/bed-setup} deploy/{render.sh,image/*.sh} .ci/run; do bash -n "$script" || return; done
}

# Built as you, run as root: most of the integration tests use loop devices and mounts.
cargo_test() {
    local triple
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
    env "CARGO_TARGET_${triple}_RUNNER=$PWD/tests/root.sh" cargo test --workspace --no-fail-fast "$@" -- --show-output
}
integration_tests() {
    local status=0
    cargo_test --test '*' || status=$?
    # Of examples in the documentation there may be none, which is no section then.
    cargo_test --doc || status=$?
    return $status
}
# The unit tests keep the processors busy; the integration tests, of which those that load the machine take turns, do not.
unit() {
    section "unit tests" count_cargo cargo_test --lib --bins
    [ -z "$beside" ] || begin workers
    section "integration tests" count_cargo integration_tests
}

# Tests of the node on another kernel, with what this one or its root may lack. Not all of them: an emulated processor
# takes ten minutes and more for that. GUEST_TESTS="node::tests" runs all.
guest() {
    local binary name reason tests
    reason=$(tests/guest/run.sh --prepare)
    if [ $? = 69 ]; then
        skip "guest" "${reason##*$'\n'}"
        return
    fi
    # Of the whole workspace, as everywhere here: for one package alone its dependencies have other features, and are
    # compiled again.
    binary=$(cargo test --workspace --no-run --message-format=json-render-diagnostics |
        sed -n '/"kind":\["lib"\].*"name":"cloud_block_csi"/s/.*"executable":"\([^"]*\)".*/\1/p')
    local some="node::tests::device_mapper node::tests::growth node::tests::health node::tests::identity node::tests::luks node::tests::raw_block node::tests::share"
    read -ra tests <<<"${GUEST_TESTS:-$some}"
    for name in "${tests[@]}"; do
        [ -z "$("$binary" --list "$name" | sed -n '/: test$/p')" ] || continue
        section "guest" count_check bash -c 'echo "no test is called $0"; exit 1' "$name"
        return
    done
    section "guest" count_guest \
        tests/guest/run.sh --deadline 2400 --share 12345 "$binary" "${tests[@]}" --test-threads=1 --show-output
}

# Without the lines that only say that a test begins
go_tests() { (cd "$1" && go vet ./... && go test -count=1 -v ./... | { grep -vE '^=== (RUN|PAUSE|CONT|NAME) ' || true; }); }

contract() {
    local module
    cargo build --workspace --all-targets || { section "build" count_check false; return; }
    for module in . proto-1.13 proto-1.12 registration; do
        section "proto comparison, ${module/#./descriptor}" count_go go_tests "tests/contract/$module"
    done
    export VULTR_SIM=$bins/vultr-sim
    section "govultr on the simulated cloud" count_go go_tests tests/contract/govultr
}

# csi-sanity as it is, but for one line: v5.6.0 compares the topology of a snapshot with reflect.DeepEqual, for which
# equal protobuf messages differ once one of them has been sent (they cache their size). It is compared as text instead.
build_csi_sanity() {
    local version=$1 tool=$2 source=$target/tools/csi-test-$1
    local as_is='Expect(topo).To(Equal(ni.GetAccessibleTopology()))'
    local mended='Expect(topo.String()).To(Equal(ni.GetAccessibleTopology().String()))'
    echo "building csi-sanity $version"
    rm -rf "$source"
    mkdir -p "$target/tools"
    cp -r "$(GOFLAGS=-modcacherw go mod download -json "github.com/kubernetes-csi/csi-test/v5@$version" |
        sed -n 's/.*"Dir": "\(.*\)".*/\1/p')" "$source" || return
    chmod -R u+w "$source"
    grep -qF "$as_is" "$source/pkg/sanity/controller.go" || { echo "the line to mend is not there"; return 1; }
    sed -i "s/$as_is/$mended/" "$source/pkg/sanity/controller.go"
    (cd "$source/cmd/csi-sanity" && GOFLAGS=-modcacherw go build -mod=mod -o "$PWD/csi-sanity.built" . ) &&
        mv "$source/cmd/csi-sanity/csi-sanity.built" "$tool"
}

sanity() {
    local version=v5.6.0
    local tool=$target/tools/csi-sanity-$version-mended
    cargo build --workspace --all-targets || { section "build" count_check false; return; }
    [ -x "$tool" ] || build_csi_sanity "$version" "$tool"
    section "csi-sanity" count_sanity \
        tests/root.sh "$bins/sanity" --csi-sanity "$tool" --skips tests/sanity/skips.txt
}

# The chart, the manifest, and what is written beside them
deploy() { section "chart, manifest and papers" count_go go_tests tests/deploy; }

count_image() { awk '/^ok: / { p++ } /^FAILED: / { f++ } /^skipped: / { s++ } END { print p + 0, f + 0, s + 0 }' "$1"; }
# The image from its Dockerfile. That for the other architecture takes minutes of an optimising compiler, so it is built
# when it is asked for: IMAGES="amd64 arm64", or FLOWS=all.
image() {
    local arch reason wanted=${IMAGES:-amd64}
    [ "${FLOWS:-}" != all ] || wanted=${IMAGES:-amd64 arm64}
    [[ " $wanted " == *" arm64 "* ]] || skip "image, arm64" "it is built with IMAGES=\"amd64 arm64\" or FLOWS=all"
    for arch in $wanted; do
        # It is made first for Kubernetes, if that is among the parts.
        [ "$made $arch" != "yes amd64" ] || continue
        reason=$(tests/kubernetes/image.sh --arch "$arch" --possible)
        # Any other failure is one, and fails the section as well.
        if [ $? = 69 ]; then
            skip "image, $arch" "${reason##*$'\n'}"
        else
            section "image, $arch" count_image tests/root.sh tests/kubernetes/image.sh --arch "$arch"
        fi
    done
}

# A real Kubernetes: the host as its only node, and two virtual workers. FLOWS=all shows every flow on both, and runs all of
# the Kubernetes storage suite that applies: on the host, whose processor is real, and what needs workers on two more. These
# show the last of the flows as well, so that both pairs of workers end at about the same time.
# Otherwise the workers show the few flows that need them most, and the host runs a sample of the suite.
count_bed() {
    awk '/^(kubernetes|suite): [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $2; f += $4; s += $6 }
        END { print p + 0, f + 0, s + 0 }' "$1"
}
# begin_making: makes, once and in the background, what the bed needs; says what is missing as a section of its own. Of the
# image one compiler's end is the most, which keeps one processor busy.
begin_making() {
    local reason
    [ -z "$made" ] || return 0
    made=no
    [ "$(uname -sm)" = "Linux x86_64" ] || { skip "kubernetes" "its workers are x86-64 Linux machines"; return; }
    reason=$(tests/kubernetes/image.sh --possible)
    [ $? != 69 ] || { skip "kubernetes" "${reason##*$'\n'}"; return; }
    made=soon
    start "kubernetes, what it is made of" tests/root.sh tests/kubernetes/prepare.sh
    start "kubernetes, the driver's image" tests/root.sh tests/kubernetes/image.sh
}
kubernetes_is_made() {
    begin_making
    [ "$made" = soon ] || { [ "$made" = yes ]; return; }
    made=no
    cargo build --workspace --all-targets || { section "build" count_check false; return 1; }
    finish "kubernetes, what it is made of" count_check
    finish "kubernetes, the driver's image" count_image
    image=$(tail -n 1 "$(log_of "kubernetes, the driver's image")")
    made=yes
}
# The beds of this run, in the order in which their ends are waited for. Flows by name are the workers' alone.
declare -rA BEDS=([host]="kubernetes on the host" [workers]="kubernetes on two workers" [rest]="kubernetes on two more workers")
# The first flow of those that the two more workers show
readonly DIVIDE=an_upgrade_under_load_is_noticed_by_no_pod
beds() { case ${FLOWS:-some} in some) echo workers host ;; all) echo workers rest host ;; *) echo workers ;; esac; }
# begin host|workers|rest: a bed in the background, if it is of this run and unless it runs already. Beds wait for most of
# their time, so they run beside each other and beside other tests.
begin() {
    local on=virtual flows=${FLOWS:-some} suite=none bed_logs=target/kubernetes/logs
    [[ " $(beds) " == *" $1 "* ]] && [ -z "${jobs[${BEDS[$1]}]:-}" ] && kubernetes_is_made || return 0
    case "$1 $flows" in
        "host some") on=host suite=sample ;;
        "host all") on=host suite=all ;;
        "workers all") flows=..$DIVIDE ;;
        "rest all") flows=$DIVIDE.. suite=rest bed_logs+=/more ;;
    esac
    start "${BEDS[$1]}" \
        tests/root.sh "$bins/kubernetes-bed" --on "$on" --image "$image" --flows "$flows" --suite "$suite" --logs "$bed_logs"
}
kubernetes() {
    local bed
    # If not, it has said and counted why.
    kubernetes_is_made || return
    for bed in $(beds); do begin "$bed"; done
    for bed in $(beds); do finish "${BEDS[$bed]}" count_bed; done
}

# Where all is run, what the beds need is made beside the lints, the host's bed runs beside the unit tests and all that comes
# after them, and the workers' beside the integration tests and the rest.
case " $* " in *" unit "*"kubernetes "*) beside=yes ;; *) beside= ;; esac
[ -z "$beside" ] || begin_making
for part in "$@"; do
    case $part in
        unit)
            [ -z "$beside" ] || begin host
            unit ;;
        lint | guest | contract | sanity | deploy | image | kubernetes) "$part" ;;
        *) echo "no such part: $part" >&2; exit 64 ;;
    esac
done

sum_up
