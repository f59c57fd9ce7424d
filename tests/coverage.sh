#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lines that the tests run, from a build of its own in build-cov/ (gcc's --coverage).
# Usage: tests/coverage.sh [FOLDER]        Needs gcovr; installs nothing.
# Runs all tests but lint and the long questions to the shipped model, without the CUDA backend,
# which needs a GPU. Ends with 1 when a floor is not reached: 85 % of all lines, 92 % of losa/,
# comm/ and runtime/io/. With FOLDER a page per file goes there (HTML).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launcher/setup.sh
. launcher/setup.sh

readonly BUILD=build-cov
readonly LEFT_OUT='lint_|e2e_(decode|documents)$'
readonly SOURCES=(comm kernels launcher losa parallel proto runtime)
jobs=${LOSA_JOBS:-$(nproc)}

if [ ! -f $BUILD/build.ninja ]; then
    mkdir -p $BUILD
    mpicc -c -o $BUILD/coverage_exit.o tests/coverage_exit.c
    cmake -S . -B $BUILD -G Ninja -DLOSA_CUDA=OFF \
        -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g1" \
        -DCMAKE_C_FLAGS="--coverage -fprofile-update=atomic" \
        -DCMAKE_EXE_LINKER_FLAGS="$PWD/$BUILD/coverage_exit.o -Wl,--wrap=MPI_Abort,--wrap=_exit" \
        >/dev/null
fi
cmake --build $BUILD --parallel "$jobs" >/dev/null
find $BUILD -name '*.gcda' -delete
ctest --test-dir $BUILD --parallel "$jobs" --output-on-failure -E "$LEFT_OUT"

report() { # folders, gcovr's arguments
    local filters=() folder
    for folder in $1; do
        filters+=(--filter "$folder/")
    done
    gcovr --root . "${filters[@]}" --exclude tests/ "${@:2}" $BUILD
}

lines_of() { # folders
    report "$1" | awk '/^TOTAL/ { printf "%.1f", 100 * $3 / $2 }'
}

failed=0
floor() { # percent, folders
    local got
    got=$(lines_of "$2")
    printf '%-52s %6s %%  (floor %s)\n' "$2" "$got" "$1"
    if awk -v got="$got" -v want="$1" 'BEGIN { exit !(got < want) }'; then
        failed=1
    fi
}

report "${SOURCES[*]}" --sort-uncovered
floor 85 "${SOURCES[*]}"
floor 92 losa
floor 92 comm
floor 92 runtime/io
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    report "${SOURCES[*]}" --html-details "$1/index.html"
fi
exit $failed
