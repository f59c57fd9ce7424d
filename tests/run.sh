#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs the whole suite: the sanitizers and valgrind
# (tests/sanitize.sh), 30 seconds of each fuzz target (tests/fuzz/run.sh), and ctest,
# whose closing lines come last.
# With arguments only ctest, which gets them:
#   tests/run.sh -R options        tests/run.sh -L unit
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launcher/setup.sh
. launcher/setup.sh

readonly SKIP=77
summary=()
failed=0

part() { # name, command...
    local start=$SECONDS status=0 word=passed
    "${@:2}" || status=$?
    if [ $status -eq $SKIP ]; then
        word=skipped
    elif [ $status -ne 0 ]; then
        word=FAILED
        failed=1
    fi
    summary+=("$(printf '%-10s %-8s %4d s' "$1" $word $((SECONDS - start)))")
}

run_ctest() {
    ctest --test-dir "$losa_build" --output-on-failure --parallel 2 "$@"
}

setup_packages
setup_build all
if [ $# -gt 0 ]; then
    run_ctest "$@"
    exit
fi
setup_test_packages || echo "some parts will be skipped" >&2
part asan tests/sanitize.sh asan
part tsan tests/sanitize.sh tsan
part valgrind tests/sanitize.sh valgrind
part fuzz tests/fuzz/run.sh 30
printf '%s\n' "" "${summary[@]}" ""
part ctest run_ctest
if [ $failed -ne 0 ]; then
    printf '%s\n' "" "${summary[@]}" >&2
fi
exit $failed
