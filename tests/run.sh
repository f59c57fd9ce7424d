#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs the whole suite. Arguments go to ctest:
#   tests/run.sh -R options        tests/run.sh -L unit
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launcher/setup.sh
. launcher/setup.sh

setup_packages
setup_build all
exec ctest --test-dir "$losa_build" --output-on-failure --parallel 2 "$@"
