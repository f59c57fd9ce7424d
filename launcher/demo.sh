#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh machine to an answer out of a document of 8,000 tokens, on two ranks:
# installs and builds what is missing, answers with LoSA attention as it is written,
# then compares with dense attention.
#   RANKS=4 launcher/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launcher/setup.sh
. launcher/setup.sh

model=models/needle-11m
document=$model/documents/mq-8192-0.txt
ranks=${RANKS:-2}

setup_packages
setup_build losa

# Every rank on a GPU needs one of its own; with fewer, the CPU answers.
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
device=()
if [ "$gpus" -gt 0 ] && [ "$gpus" -lt "$ranks" ]; then
    device=(--device cpu)
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

ask() { # attention policy, more options
    local policy=$1
    shift
    mpirun -n "$ranks" "$losa_build/losa" generate --model "$model" --chat \
        --prompt-file "$document" --attention "$policy" --stats-file "$out/$policy.json" "${device[@]}" "$@"
}

echo "Document: $document ($(wc -w <"$document") words), $ranks ranks"
echo "Question:$(sed 's/.*Question://' "$document")"
echo -n "Answer:   "
ask losa
echo
ask dense --quiet >/dev/null
"$losa_build/losa" report "$out/dense.json" "$out/losa.json"
