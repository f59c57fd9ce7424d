#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The suite's second look, with tools that see what a test alone does not.
# Usage: tests/sanitize.sh [asan|tsan|valgrind]...      (all of them without arguments)
#   asan      ASan + UBSan + LeakSanitizer into build-asan/: unit, kern, the fuzz corpora;
#             without leak checks, since MPI leaks: mpi on 2 ranks
#   tsan      TSan into build-tsan/: ranks that are threads, and the thread pool
#   valgrind  into build-valgrind/, two runs: logits of a tiny model, a short answer
# All without CUDA, whose libraries are not clean themselves.
# Left out for time: see LONG below and docs/TESTING.md. LOSA_JOBS: how many at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launcher/setup.sh
. launcher/setup.sh

jobs=${LOSA_JOBS:-$(nproc)}
# Slow: whole sessions of the shipped model. engine_threads and engine_oracle run the same code.
readonly LONG='engine_(batch|text)'
readonly THREADED=(test_unit_pool test_unit_comm_thread test_unit_engine_threads)

build_with() { # folder, sanitizers, targets...
    if [ ! -f "$1/build.ninja" ]; then
        cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
            -DCMAKE_C_FLAGS_RELWITHDEBINFO="-O1 -g1" -DLOSA_SANITIZE="$2" -DLOSA_CUDA=OFF \
            >/dev/null
    fi
    cmake --build "$1" --parallel "$jobs" --target "${@:3}" >/dev/null
}

tests_of() { # folder, ctest's arguments
    ctest --test-dir "$1" --output-on-failure --parallel "$jobs" "${@:2}"
}

check_asan() {
    build_with build-asan address,undefined all
    export UBSAN_OPTIONS=print_stacktrace=1
    tests_of build-asan -L '^(unit|kern|fuzz)$' -E "$LONG"
    ASAN_OPTIONS=detect_leaks=0 tests_of build-asan -R 'mpi_.*_2$'
}

check_tsan() {
    build_with build-tsan thread "${THREADED[@]}"
    TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp" \
        tests_of build-tsan -R "^($(IFS='|' && echo "${THREADED[*]}"))\$"
}

under_valgrind() {
    local code=0
    valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
        build-valgrind/losa "$@" >/dev/null || code=$?
    if [ $code -eq 132 ]; then # SIGILL: built for a CPU that valgrind does not know
        echo "skipped: valgrind does not know this CPU's instructions"
        return 0
    fi
    return $code
}

check_valgrind() {
    local model=tests/golden/logits/gqa_b4_tied out
    if ! command -v valgrind >/dev/null; then
        echo "skipped: no valgrind"
        return 0
    fi
    # valgrind knows AVX2, but not all that a newer CPU has.
    cmake -S . -B build-valgrind -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS=-g1 \
        -DLOSA_CPU_ARCH=x86-64-v3 -DLOSA_CUDA=OFF -DLOSA_TESTS=OFF >/dev/null
    cmake --build build-valgrind --parallel "$jobs" --target losa >/dev/null
    out=$(mktemp)
    under_valgrind logits -q --model $model --ids $model/ids.json --out "$out" --threads 2
    rm -f "$out"
    under_valgrind generate -q --model models/needle-11m --prompt "The number is 7." --ignore-stop \
        --max-tokens 8 --context 256 --threads 2
    echo "valgrind: clean"
}

if [ $# -eq 0 ]; then
    set -- asan tsan valgrind
fi
for part in "$@"; do
    "check_$part"
done
