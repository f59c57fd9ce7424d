# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What demo.sh and tests/run.sh share; sourced by them. Works on Debian 12 and Ubuntu 24.04.
#
# setup_packages  installs the missing packages (root), or names them and fails.
# setup_test_packages  the same for what only tests want; without root they are skipped.
# setup_build T   configures and builds target T into build/ (Release); quick when nothing changed.
# Sourcing it also sets what mpirun needs as root and on few cores.

losa_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
losa_build=$losa_root/build

losa_packages=(
    build-essential cmake ninja-build pkg-config           # build
    libopenmpi-dev openmpi-bin                             # ranks
    libjansson-dev libpcre2-dev libutf8proc-dev            # JSON, tokenizer
    libprotobuf-c-dev protobuf-c-compiler                  # messages
    libcmocka-dev                                          # tests
)

# Without them tests/run.sh skips valgrind and the fuzz targets.
losa_test_packages=(clang valgrind)

# mpirun as root; more ranks than cores; our own threads on all cores; containers
# without ptrace rights.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# After a failure our one line says it; mpirun need not add its paragraphs.
export OMPI_MCA_orte_execute_quiet=1

setup_missing() {
    local package
    for package; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            echo "$package"
        fi
    done
}

setup_install() {
    echo "installing: $*" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2
    apt-get install -y -q --no-install-recommends "$@" >&2
}

setup_packages() {
    local missing
    mapfile -t missing < <(setup_missing "${losa_packages[@]}")
    if [ "${#missing[@]}" -eq 0 ]; then
        return 0
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing packages; run this as root, then try again:" >&2
        echo "apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
        return 1
    fi
    setup_install "${missing[@]}"
}

setup_test_packages() {
    local missing
    mapfile -t missing < <(setup_missing "${losa_test_packages[@]}")
    if [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" -eq 0 ]; then
        setup_install "${missing[@]}"
        # The fuzzer's runtime is a package of its own, named after clang's version.
        setup_install "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
    fi
}

setup_build() {
    if [ ! -f "$losa_build/build.ninja" ]; then
        cmake -S "$losa_root" -B "$losa_build" -G Ninja -DCMAKE_BUILD_TYPE=Release >&2
    fi
    cmake --build "$losa_build" --parallel "${LOSA_JOBS:-$(nproc)}" --target "$1" >&2
}
