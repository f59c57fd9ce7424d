#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Rules of CONTRIBUTING.md that a script can check. Usage: lint.sh CHECK
#   includes  every #include follows the order of docs/ARCHITECTURE.md
#   headers   every header compiles alone
#   files     SPDX line; no file over 800 lines
#   format    clang-format 14 would change nothing (skipped without it)
# Environment, from ctest: LOSA_SOURCE, LOSA_BUILD (for generated headers), CC.
set -euo pipefail
cd "${LOSA_SOURCE:-$(dirname "$0")/../..}"

readonly SKIP=77 MAX_LINES=800
readonly FOLDERS=(runtime kernels comm parallel losa proto launcher tests)
failures=0

complain() {
    echo "$*" >&2
    failures=$((failures + 1))
}

sources() { # name patterns for find
    local args=()
    local pattern
    for pattern in "$@"; do
        args+=(-o -name "$pattern")
    done
    find "${FOLDERS[@]}" -type f \( "${args[@]:1}" \) | sort
}

# The folder (= layer) of a path from the root.
layer_of() {
    case $1 in
    runtime/*/*) echo "$1" | cut -d/ -f1-2 ;;
    *) echo "${1%%/*}" ;;
    esac
}

# Layers that a layer may include besides itself.
allowed_for() {
    local core="runtime/base kernels comm parallel losa"
    case $1 in
    runtime/base) echo "" ;;
    kernels | proto) echo "runtime/base" ;;
    comm) echo "runtime/base kernels proto" ;;
    parallel) echo "runtime/base kernels comm" ;;
    losa) echo "runtime/base kernels comm parallel" ;;
    runtime/io | runtime/text) echo "$core" ;;
    runtime/model) echo "$core runtime/io" ;;
    runtime/engine) echo "$core runtime/io runtime/text runtime/model proto" ;;
    launcher) echo "$core runtime/io runtime/text runtime/model runtime/engine proto" ;;
    *) echo none ;;
    esac
}

check_include() { # file, included path
    local from to allowed
    from=$(layer_of "$1")
    to=$(layer_of "$2")
    if [ "$from" = "$to" ]; then
        return
    fi
    allowed=$(allowed_for "$from")
    case " $allowed " in
    *" $to "*) ;;
    *) complain "$1: $from must not include $2" ;;
    esac
    case $2 in
    *_int.h) complain "$1: $2 is private to $to" ;;
    esac
}

check_includes() {
    local file path
    while IFS=: read -r file path; do
        case $file in
        tests/*) continue ;; # tests include everything
        esac
        case $path in
        */*) check_include "$file" "$path" ;;
        *) complain "$file: include \"$path\" from the root of the project" ;;
        esac
    done < <(sources '*.c' '*.h' '*.cu' | xargs grep -HoE '^#include "[^"]+"' |
        sed -E 's/#include "([^"]+)"/\1/')
}

check_headers() {
    local file flags
    read -r -a flags < <(pkg-config --cflags jansson libpcre2-8 libutf8proc libprotobuf-c cmocka ompi-c)
    flags+=(-std=gnu11 -D_GNU_SOURCE -I. -I"${LOSA_BUILD:-build}/generated")
    while read -r file; do
        # An object of its own, so that a header without declarations is no warning.
        printf '#include "%s"\nextern int lint_unit;\n' "$file" |
            "${CC:-cc}" "${flags[@]}" -Wall -Wextra -Wno-unused-function -Werror -fsyntax-only -x c - ||
            complain "$file: does not compile alone"
    done < <(sources '*.h')
}

check_files() {
    local file lines
    while read -r file; do
        lines=$(wc -l <"$file")
        if [ "$lines" -gt "$MAX_LINES" ]; then
            complain "$file: $lines lines, more than $MAX_LINES"
        fi
        head -n 2 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' ||
            complain "$file: no SPDX line on top"
    done < <(sources '*.c' '*.h' '*.cu' '*.sh' '*.py')
}

check_format() {
    local tool
    for tool in clang-format-14 clang-format; do
        if "$tool" --version 2>/dev/null | grep -q 'version 14\.'; then
            sources '*.c' '*.h' | xargs "$tool" --dry-run -Werror ||
                complain "run clang-format -i on the files above"
            return
        fi
    done
    echo "skipped: no clang-format 14 (other versions break some lines elsewhere)"
    exit "$SKIP"
}

case ${1:-} in
includes | headers | files | format) "check_$1" ;;
*)
    echo "usage: $0 includes|headers|files|format" >&2
    exit 2
    ;;
esac
if [ "$failures" -gt 0 ]; then
    echo "$failures complaint(s)" >&2
    exit 1
fi
