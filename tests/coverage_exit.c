// SPDX-License-Identifier: Apache-2.0
// Linked into every program of tests/coverage.sh with --wrap: a rank that ends its job in
// a hurry writes its counters first. Weak, since CMake's own checks have no MPI.
#include <mpi.h>

void __gcov_dump(void);
int __real_MPI_Abort(MPI_Comm comm, int status) __attribute__((weak));
_Noreturn void __real__exit(int status);

int __wrap_MPI_Abort(MPI_Comm comm, int status);
_Noreturn void __wrap__exit(int status);

int __wrap_MPI_Abort(MPI_Comm comm, int status)
{
    __gcov_dump();
    return __real_MPI_Abort(comm, status);
}

void __wrap__exit(int status)
{
    __gcov_dump();
    __real__exit(status);
}
