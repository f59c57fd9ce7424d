#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a machine with a GPU has to show, from a folder of programs built elsewhere:
# parity with the CPU, compute-sanitizer, whole answers, and speeds. The short table
# comes last; logs go to $OUT (default ./gpu-out).
#   tests/gpu.sh pack BUILD FOLDER    collects programs and their libraries (no CUDA)
#   tests/gpu.sh [FOLDER [PART...]]   runs; FOLDER holds this script, PARTs are
#                                     parity sanitize answers bench (default: all)
set -uo pipefail

pack() { # build folder, target folder
    mkdir -p "$2/lib"
    cp "$0" "$1/losa" "$1/tests/test_gpu_parity" "$2/"
    ldd "$1/losa" "$1/tests/test_gpu_parity" | awk '$2 == "=>" { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libpthread|libdl|librt|libgcc_s|libstdc\+\+)\.so' |
        grep -vE 'libcu(da|blas)' | xargs -I{} cp -L {} "$2/lib/"
    strip "$2/losa" "$2/test_gpu_parity"
    du -sh "$2"
}

if [ "${1:-}" = pack ]; then
    pack "$2" "$3"
    exit
fi

here=$(cd "${1:-$(dirname "$0")}" && pwd)
shift || true
parts=${*:-parity sanitize answers bench}
out=${OUT:-gpu-out}
mkdir -p "$out"
rm -f "$out"/*.log
set -f # test patterns are not file names
export LD_LIBRARY_PATH=$here/lib:${LD_LIBRARY_PATH:-}
if ldd "$here/losa" | grep -q 'cublas.*not found'; then
    blas=$(find / -name 'libcublas.so.13' -not -path '/proc/*' 2>/dev/null | head -n 1)
    LD_LIBRARY_PATH+=:$(dirname "$blas")
fi
summary=()

# Runs a part; its output joins the log of its group. Keeps a line for the summary.
part() { # group-name, command...
    local name=$1 began=$SECONDS status
    shift
    echo "== $name" >>"$out/${name%%-*}.log"
    "$@" >>"$out/${name%%-*}.log" 2>&1
    status=$?
    summary+=("$(printf '%-28s %-6s %4d s' "$name" "$([ $status = 0 ] && echo ok || echo "rc $status")" \
        $((SECONDS - began)))")
    return $status
}

answer() { # name, options...
    local name=$1
    shift
    part "answer-$name" timeout 120 "$here/losa" generate --model models/needle-11m --chat -q \
        --prompt-file models/needle-11m/documents/mq-8192-0.txt --max-tokens 64 --temperature 0 --json "$@"
}

sanitize() { # tool, test pattern
    part "$1-$2" timeout 200 compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$here/test_gpu_parity" --only "$2"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
ldd "$here/losa" | grep -E 'cublas|not found'
case " $parts " in *" parity "*)
    part parity timeout 300 "$here/test_gpu_parity"
    grep -vE '^\[ +(RUN|OK) ' "$out/parity.log" | head -n 60
    ;;
esac
case " $parts " in *" answers "*)
    for policy in dense losa losa-mix; do
        answer "cpu-$policy" --device cpu --attention $policy
        answer "cuda-f32-$policy" --device cuda --precision f32 --attention $policy
        answer "cuda-bf16-$policy" --device cuda --attention $policy
    done
    cut -c1-200 "$out/answer.log"
    ;;
esac
case " $parts " in *" sanitize "*)
    for test in ${TESTS:-buffers dense kv_write locality active page_* plan_count attn_* vocab unmask}; do
        for tool in ${TOOLS:-memcheck}; do
            sanitize "$tool" "pt_test_$test"
        done
    done
    grep -hE 'SUMMARY|Invalid|Error|hazard' "$out"/memcheck.log "$out"/racecheck.log "$out"/initcheck.log 2>/dev/null | sort | uniq -c | head -n 30
    ;;
esac
case " $parts " in *" bench "*)
    part bench timeout 200 "$here/test_gpu_parity" --bench
    cat "$out/bench.log"
    ;;
esac
printf '%s\n' "${summary[@]}"
