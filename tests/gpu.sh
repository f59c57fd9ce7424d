#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a machine with a GPU has to show, from a folder of programs built elsewhere:
# parity with the CPU, compute-sanitizer, whole answers, and speeds. The short table
# comes last; logs go to $OUT (default ./gpu-out).
#   tests/gpu.sh pack BUILD FOLDER    collects programs and their libraries (no CUDA)
#   tests/gpu.sh [FOLDER [PART...]]   runs; FOLDER holds this script, PARTs are
#                                     parity model answers ranks sanitize bench (default: all);
#                                     TABLE names one table of the last
set -uo pipefail

pack() { # build folder, target folder
    mkdir -p "$2/lib"
    cp "$0" "$1/losa" "$1/tests/"test_gpu_{parity,model,memory} "$2/"
    ldd "$1/losa" "$1/tests/test_gpu_parity" | awk '$2 == "=>" { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libpthread|libdl|librt|libgcc_s|libstdc\+\+)\.so' |
        grep -vE 'lib(cuda|cublas|nccl)' | xargs -I{} cp -L {} "$2/lib/"
    strip "$2/losa" "$2/"test_gpu_{parity,model,memory}
    du -sh "$2"
}

if [ "${1:-}" = pack ]; then
    pack "$2" "$3"
    exit
fi

here=$(cd -- "${1:-$(dirname "$0")}" && pwd) || exit 2
if [ ! -x "$here/test_gpu_parity" ]; then
    echo "$0: no programs in $here; collect them first: tests/gpu.sh pack BUILD FOLDER, then tests/gpu.sh FOLDER" >&2
    exit 2
fi
shift || true
parts=${*:-parity model answers ranks sanitize bench}
out=${OUT:-gpu-out}
mkdir -p "$out"
rm -f "$out"/*.log "$out"/ranks.*
set -f # test patterns are not file names
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
export LD_LIBRARY_PATH=$here/lib:${LD_LIBRARY_PATH:-}
for library in libcublas.so.13 libnccl.so.2; do # where they are, if not on the loader's path
    if ldd "$here/losa" | grep -q "$library => not found"; then
        LD_LIBRARY_PATH+=:$(dirname "$(find / -name $library -not -path '/proc/*' 2>/dev/null | head -n 1)")
    fi
done
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

# The tokens of an answer, as a checksum, with its times in milliseconds.
answer_on() { # ranks, attention, precision, options...
    local ranks=$1 attention=$2 precision=$3 json=$out/ranks.json
    shift 3
    set +f
    # shellcheck disable=SC2086
    timeout 120 mpirun -n "$ranks" "$here/losa" generate --model models/needle-11m --chat -q --device cuda \
        --prompt-file models/needle-11m/documents/mq-8192-0.txt --max-tokens 64 --temperature 0 --json \
        --attention $attention --precision "$precision" "$@" >"$json" 2>>"$out/ranks.log"
    local status=$?
    set -f
    printf '%s %s %s %s rc=%d %s\n' "$ranks" "${attention// /,}" "$precision" "${*:-graph}" $status \
        "$(python3 -c 'import json, sys, zlib
r = json.load(open(sys.argv[1])); s = r["stats"]
print("tokens", zlib.crc32(str(r["token_ids"]).encode()), "prefill %.1f decode %.1f ms" % (1e3 * s["prefill_seconds"], 1e3 * s["decode_seconds"]))' "$json")" >>"$out/ranks.txt"
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
case " $parts " in *" model "*)
    part model env LOSA_SOURCE=. timeout 300 "$here/test_gpu_model"
    part model-memory timeout 300 "$here/test_gpu_memory"
    grep -vE '^\[ +(RUN|OK) ' "$out/model.log" | head -n 60
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
case " $parts " in *" ranks "*) # every GPU of the machine against one
    gpus=$(nvidia-smi -L | wc -l)
    for policy in dense losa losa-mix "losa --active topk:5" "losa --plan-scope shared --page-size 4" "losa-mix --first sparse"; do
        for precision in f32 auto; do
            for ranks in 1 "$gpus"; do
                answer_on "$ranks" "$policy" "$precision"
                answer_on "$ranks" "$policy" "$precision" --no-graph
            done
        done
    done
    for policy in dense losa; do # sums by NCCL alone
        LOSA_PEERS=0 answer_on "$gpus" "$policy" f32
    done
    cat "$out/ranks.txt"
    ;;
esac
case " $parts " in *" sanitize "*)
    for test in ${TESTS:-buffers dense kv_write locality active page_* keys plan_count attn* vocab unmask}; do
        for tool in ${TOOLS:-memcheck racecheck initcheck}; do
            sanitize "$tool" "pt_test_$test"
        done
    done
    grep -hE 'SUMMARY|Invalid|Error|hazard' "$out"/memcheck.log "$out"/racecheck.log "$out"/initcheck.log 2>/dev/null | sort | uniq -c | head -n 30
    ;;
esac
case " $parts " in *" bench "*)
    part bench timeout 200 "$here/test_gpu_parity" --bench ${TABLE:-}
    cat "$out/bench.log"
    ;;
esac
printf '%s\n' "${summary[@]}"
