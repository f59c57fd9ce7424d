#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What GPUs give to many requests at once: tokens/s of requests that are denoised together,
# with random weights of published shapes and prompts that count as read.
#
#   tools/bench/batch_gpu.sh [LOSA [PART...]]
#
#   one     one GPU: 1, 4, 16, 64 requests of 4K and 32K, dense against losa
#   small   one GPU: 128 requests of 1K, sdar-4b, blocks of 4, a token a step
#   job     one GPU: losa batch itself, 256 requests of 1K and 256 new tokens, 128 at a time,
#           otherwise as `small`; prompts are read
#   two     two GPUs: the requests of `one`, tensor parallel (tp 2) against data parallel (dp 2)
#
# Without PART: one and small. The model is the largest of MODELS that has room. dp 2 is two
# programs with half of the requests each: groups of a batch job share nothing either.
set -uo pipefail

losa=${1:-losa}
shift || true
parts=${*:-one small}
models=${MODELS:-sdar-8b sdar-4b sdar-1.7b}
contexts=${CONTEXTS:-4K 32K} counts=${COUNTS:-1 4 16 64}
policies=dense,losa:256
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Columns of a table with a head, by name; values of several programs are added up, but for
# times, which are the largest.
pick='
FNR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
{
    p = $at["policy"]
    if (!(p in speed)) order[n++] = p
    speed[p] += $at["tokens_per_s"]
    if ($at["first_ms"] > first[p]) first[p] = $at["first_ms"]
    if ($at["later_ms"] > later[p]) later[p] = $at["later_ms"]
    if ($at["host_ms"] > host[p]) host[p] = $at["host_ms"]
    density[p] = $at["density_later"]
}
END {
    for (i = 0; i < n; i++) {
        p = order[i]
        printf "%-5s %8s %8s %-9s %-16s %8.2f %8.2f %8.3f %8.3f %9.0f\n", how, context, requests, \
            model, p, first[p], later[p], host[p], density[p], speed[p]
    }
}'

head() {
    printf '%-5s %8s %8s %-9s %-16s %8s %8s %8s %8s %9s\n' "" context requests model policy \
        first_ms later_ms host_ms density tokens/s
}

# One program of a way, in the background: GPUs (or none to choose), requests, options.
start() { # way, number, gpus, launcher, options...
    local file=$work/$1.$2 gpus=$3 launcher=$4
    shift 4
    # shellcheck disable=SC2086
    ${gpus:+env CUDA_VISIBLE_DEVICES=$gpus} $launcher "$losa" bench decode "$@" --device cuda --csv \
        >"$file" 2>"$file.err" &
}

# One line for each policy, of the largest model that has room.
row() { # way, context, requests, options...
    local how=$1 context=$2 requests=$3 model status job
    shift 3
    for model in $models; do
        rm -f "$work"/*
        local common=("$context" --dummy "$model" -p "$policies" "$@")
        case $how in
        one) start one 0 0 "" "${common[@]}" --batch "$requests" ;;
        tp2) start tp2 0 "" "mpirun -n 2" "${common[@]}" --batch "$requests" ;;
        dp2)
            start dp2 0 0 "" "${common[@]}" --batch $((requests / 2))
            start dp2 1 1 "" "${common[@]}" --batch $((requests / 2))
            ;;
        esac
        status=0
        for job in $(jobs -p); do
            wait "$job" || status=$?
        done
        if [ $status = 0 ]; then
            awk -F, -v how="$how" -v context="$context" -v requests="$requests" -v model="$model" \
                "$pick" "$work/$how".[01]
            return
        fi
        if ! grep -qh 'memory: .* needed' "$work"/*.err; then
            cat "$work"/*.err
            return
        fi
    done
    printf '%-5s %8s %8s does not fit\n' "$how" "$context" "$requests"
}

requests() { # how many, tokens of a prompt, new tokens
    awk -v n="$1" -v prompt="$2" -v new="$3" 'BEGIN {
        for (i = 0; i < n; i++) {
            printf "{\"custom_id\":\"r%d\",\"method\":\"POST\",\"url\":\"/v1/completions\",", i
            printf "\"body\":{\"max_tokens\":%d,\"losa\":{\"ignore_stop\":true},\"prompt\":[", new
            for (k = 0; k < prompt; k++)
                printf "%s%d", k ? "," : "", int(rand() * 150000)
            print "]}}"
        }
    }'
}

job() {
    local policy
    for policy in dense losa; do
        requests 256 1024 256 >"$work/in.jsonl"
        printf '%-6s' "$policy"
        "$losa" batch --dummy sdar-4b --block-length 4 --strategy low_confidence_static \
            --attention $policy --budget 256 --max-sessions 128 --context $((128 * 1280)) \
            --device cuda -i "$work/in.jsonl" -o "$work/out.jsonl"
    done
}

run_part() {
    local context requests
    case $1 in
    one | two) ;;
    small)
        models=sdar-4b row one 1K 128 --block 4 --blocks 8
        return
        ;;
    job)
        job
        return
        ;;
    *) echo "$1: not one of one, small, two, job" >&2 && exit 2 ;;
    esac
    for context in $contexts; do
        for requests in $counts; do
            if [ "$1" = one ]; then
                row one "$context" "$requests" --block 16 --steps 8
            elif [ "$requests" -gt 1 ]; then
                row tp2 "$context" "$requests" --block 16 --steps 8
                row dp2 "$context" "$requests" --block 16 --steps 8
            fi
        done
    done
}

head
for part in $parts; do
    run_part "$part"
done
