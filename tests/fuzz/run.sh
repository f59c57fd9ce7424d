#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the fuzz targets with clang (libFuzzer, ASan, UBSan) into build-fuzz/ and lets
# each search for some seconds, four at a time. Usage: tests/fuzz/run.sh [SECONDS] [NAME...]
# Ends with 77 when clang or its fuzzer is missing. An input that fails is kept in
# build-fuzz/found/ with the log: once the fault is fixed, it belongs into corpus/NAME/.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-60}
names=("${@:2}")
build="build-fuzz"
found=$build/found
readonly SKIP=77 AT_ONCE=4

if ! echo 'int LLVMFuzzerTestOneInput(const char *d, long n){return n<0&&*d;}' |
    clang -x c -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then
    echo "skipped: no clang with libFuzzer" >&2
    exit $SKIP
fi
if [ ! -f $build/build.ninja ]; then
    cmake -S . -B $build -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DCMAKE_C_FLAGS_RELWITHDEBINFO="-O1 -g1" -DLOSA_FUZZ=ON \
        -DLOSA_SANITIZE=fuzzer-no-link,address,undefined -DLOSA_CUDA=OFF >/dev/null
fi
cmake --build $build --parallel "${LOSA_JOBS:-$(nproc)}" --target fuzz_targets >/dev/null
if [ ${#names[@]} -eq 0 ]; then
    mapfile -t names < <(printf '%s\n' tests/fuzz/fuzz_*.c | sed 's,.*/fuzz_\(.*\)\.c,\1,')
fi
mkdir -p $found

search() { # name
    local log=$found/$1.log inputs=$build/corpus/$1
    mkdir -p "$inputs" # what earlier runs found interesting; the seeds come second
    if $build/tests/fuzz_"$1" -max_total_time="$seconds" -max_len=2048 -timeout=20 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$found/$1-" \
        "$inputs" "tests/fuzz/corpus/$1" >"$log" 2>&1; then
        echo "fuzz_$1: $(awk '/number_of_executed_units/ { print $2 }' "$log") inputs"
        return 0
    fi
    echo "fuzz_$1: failed; see $log" >&2
    tail -n 40 "$log" >&2
    return 1
}

failed=0
for name in "${names[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge $AT_ONCE ]; do
        wait -n || failed=1
    done
    search "$name" &
done
for job in $(jobs -p); do
    wait "$job" || failed=1
done
exit $failed
