// SPDX-License-Identifier: Apache-2.0
// A rank whose assertion fails leaves the others to the deadline.
#include "tests/mpi/comm_checks.h"

#include "comm/comm_int.h"
#include "runtime/base/mem.h"
#include "runtime/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const size_t SIZES[] = {0, 1, 2, 3, 7, 63, 64, 65, 1000, 4097, 70001, 3000000};
enum { SIZES_LEN = sizeof SIZES / sizeof SIZES[0] };

static kern_buf *new_buf(const comm_rank_case *me, kern_dtype dtype, size_t count)
{
    kern_buf *buf = NULL;
    assert_int_equal(kern_buf_new(me->dev, dtype, count, "test", &buf), RT_OK);
    return buf;
}

// A value in (-8, 8) with a full mantissa, so that the order of a sum shows.
static float noise(int rank, size_t i)
{
    const uint32_t counter[4] = {(uint32_t)i, (uint32_t)rank, 0, 0};
    return 16.0F * rt_uniform_open(rt_philox4x32(7, counter).v[0]) - 8.0F;
}

static uint64_t hash(const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    uint64_t h = 1469598103934665603U; // FNV-1a
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 1099511628211U;
    return h;
}

static void assert_same_everywhere(const comm_rank_case *me, const void *bytes, size_t n)
{
    int ranks = comm_ranks(me->world);
    uint64_t own = hash(bytes, n), all[64];
    assert_true(ranks <= 64);
    assert_int_equal(comm_ctl_allgather(me->world, &own, sizeof own, all), RT_OK);
    for (int r = 0; r < ranks; r++)
        assert_true(all[r] == own);
}

static void sum_of(const comm_rank_case *me, size_t count)
{
    int rank = comm_rank(me->world), ranks = comm_ranks(me->world);
    kern_buf *buf = new_buf(me, KERN_F32, count + 1);
    float *x = kern_buf_ptr(buf);
    for (size_t i = 0; i < count; i++)
        x[i] = noise(rank, i);
    x[count] = (float)rank; // past the end: stays
    assert_int_equal(comm_allreduce(me->world, COMM_HIDDEN, buf, count, COMM_SUM), RT_OK);
    for (size_t i = 0; i < count; i++) {
        double want = 0;
        for (int r = 0; r < ranks; r++)
            want += (double)noise(r, i);
        // Each of the ranks - 1 additions rounds a value below 8 ranks.
        double tolerance = 8.0 * ranks * ranks * 0x1p-24;
        if (!(fabs((double)x[i] - want) <= tolerance))
            fail_msg("count %zu, element %zu: %g, want %g", count, i, (double)x[i], want);
    }
    assert_true(x[count] == (float)rank);
    assert_same_everywhere(me, x, count * sizeof *x);
    kern_buf_free(buf);
}

static void check_sum(const comm_rank_case *me)
{
    for (size_t i = 0; i < SIZES_LEN; i++)
        sum_of(me, SIZES[i]);
}

static void check_max(const comm_rank_case *me)
{
    int rank = comm_rank(me->world), ranks = comm_ranks(me->world);
    size_t n = 1001;
    kern_buf *f = new_buf(me, KERN_F32, n), *k = new_buf(me, KERN_I32, n);
    float *x = kern_buf_ptr(f);
    int32_t *y = kern_buf_ptr(k);
    for (size_t i = 0; i < n; i++) {
        x[i] = noise(rank, i);
        y[i] = -1000000 + (int32_t)((i * 7 + (size_t)rank * 13) % 101);
    }
    assert_int_equal(comm_allreduce(me->world, COMM_CHECK, f, n, COMM_MAX), RT_OK);
    assert_int_equal(comm_allreduce(me->world, COMM_CHECK, k, n, COMM_MAX), RT_OK);
    for (size_t i = 0; i < n; i++) {
        float want = noise(0, i);
        int32_t most = INT32_MIN;
        for (int r = 0; r < ranks; r++) {
            int32_t value = -1000000 + (int32_t)((i * 7 + (size_t)r * 13) % 101);
            want = noise(r, i) > want ? noise(r, i) : want;
            most = value > most ? value : most;
        }
        assert_true(x[i] == want);
        assert_int_equal(y[i], most);
    }
    kern_buf_free(f);
    kern_buf_free(k);
}

static void gather_of(const comm_rank_case *me, kern_dtype dtype, size_t count)
{
    int rank = comm_rank(me->world), ranks = comm_ranks(me->world);
    size_t size = kern_dtype_size(dtype), n = count * size;
    kern_buf *src = new_buf(me, dtype, count + 1),
             *dst = new_buf(me, dtype, count * (size_t)ranks + 1);
    unsigned char *from = kern_buf_ptr(src), *to = kern_buf_ptr(dst);
    for (size_t i = 0; i < n; i++)
        from[i] = (unsigned char)(i * 31 + i / 251 + (size_t)rank * 89);
    memset(to + n * (size_t)ranks, 0xA5, size);
    assert_int_equal(comm_allgather(me->world, COMM_VOCAB, src, count, dst), RT_OK);
    for (int r = 0; r < ranks; r++)
        for (size_t i = 0; i < n; i++)
            if (to[(size_t)r * n + i] != (unsigned char)(i * 31 + i / 251 + (size_t)r * 89))
                fail_msg("count %zu: byte %zu of rank %d differs", count, i, r);
    for (size_t i = 0; i < size; i++)
        assert_int_equal(to[n * (size_t)ranks + i], 0xA5);
    kern_buf_free(src);
    kern_buf_free(dst);
}

static void check_gather(const comm_rank_case *me)
{
    for (size_t i = 0; i < SIZES_LEN; i++)
        gather_of(me, KERN_F32, SIZES[i] < 100000 ? SIZES[i] : 500001);
    gather_of(me, KERN_BF16, 333);
    gather_of(me, KERN_I32, 17);
    gather_of(me, KERN_I64, 1);
}

static void check_ctl(const comm_rank_case *me)
{
    int rank = comm_rank(me->world), ranks = comm_ranks(me->world);
    static const size_t sizes[] = {0, 1, 5, 1024, 1000003};
    for (int root = 0; root < ranks; root++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            size_t n = sizes[s];
            unsigned char *bytes = rt_mem_alloc(n, 1, "test");
            for (size_t i = 0; rank == root && i < n; i++)
                bytes[i] = (unsigned char)(i * 3 + (size_t)root);
            assert_int_equal(comm_ctl_bcast(me->world, root, bytes, n), RT_OK);
            for (size_t i = 0; i < n; i++)
                assert_true(bytes[i] == (unsigned char)(i * 3 + (size_t)root));
            rt_free(bytes);
        }
    int32_t own[3] = {rank, rank * rank, -rank}, all[64][3];
    assert_int_equal(comm_ctl_allgather(me->world, own, sizeof own, all), RT_OK);
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(all[r][0], r);
        assert_int_equal(all[r][1], r * r);
        assert_int_equal(all[r][2], -r);
    }
    assert_int_equal(comm_ctl_allgather(me->world, NULL, 0, NULL), RT_OK);
    assert_int_equal(comm_ctl_barrier(me->world), RT_OK);
}

static void bcast_bytes_of(const comm_rank_case *me, int root, size_t n)
{
    rt_str s = {0};
    char *want = rt_mem_alloc(n, 1, "test");
    for (size_t i = 0; i < n; i++)
        want[i] = (char)(i * 5 + (size_t)root);
    if (comm_rank(me->world) == root)
        assert_int_equal(rt_str_append(&s, want, n), RT_OK);
    else
        assert_int_equal(rt_str_puts(&s, "what was there before"), RT_OK);
    assert_int_equal(comm_ctl_bcast_bytes(me->world, root, &s, 1 << 20), RT_OK);
    assert_int_equal(s.len, n);
    assert_memory_equal(s.data, want, n);
    rt_str_free(&s);
    rt_free(want);
}

static void check_bcast_bytes(const comm_rank_case *me)
{
    static const size_t sizes[] = {0, 1, 100, 1007, 1008, 1009, 1024, 99999, 1 << 20};
    for (int root = 0; root < comm_ranks(me->world); root++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            bcast_bytes_of(me, root, sizes[i]);

    // Too long: refused everywhere, receivers keep what they had, all go on.
    rt_str s = {0};
    assert_int_equal(rt_str_puts(&s, comm_rank(me->world) == 0 ? "eleven byte" : "old"), RT_OK);
    assert_int_equal(comm_ctl_bcast_bytes(me->world, 0, &s, 10), RT_ERR_LIMIT);
    assert_string_equal(rt_last_error(), "broadcast of 11 bytes from rank 0: limit is 10");
    assert_string_equal(s.data, comm_rank(me->world) == 0 ? "eleven byte" : "old");
    assert_int_equal(comm_ctl_bcast_bytes(me->world, 0, &s, 11), RT_OK);
    assert_string_equal(s.data, "eleven byte");
    rt_str_free(&s);
}

// Whatever the size, in pieces: as for data beyond what an int counts.
static void check_pieces(const comm_rank_case *me)
{
    size_t whole = me->world->chunk_max;
    me->world->chunk_max = 40;
    sum_of(me, 1003);
    gather_of(me, KERN_F32, 1003);
    gather_of(me, KERN_I32, 10);
    gather_of(me, KERN_BF16, 21);
    bcast_bytes_of(me, comm_ranks(me->world) - 1, 5001);
    me->world->chunk_max = whole;
}

static void check_counters(const comm_rank_case *me)
{
    kern_buf *a = new_buf(me, KERN_F32, 10),
             *b = new_buf(me, KERN_F32, 10 * (size_t)comm_ranks(me->world));
    uint64_t moved = comm_ranks(me->world) > 1;
    for (int k = 0; k < COMM_CLASSES; k++) {
        comm_counter before[COMM_CLASSES];
        for (int other = 0; other < COMM_CLASSES; other++)
            before[other] = comm_count(me->world, (comm_class)other);
        assert_int_equal(comm_allreduce(me->world, (comm_class)k, a, 10, COMM_SUM), RT_OK);
        assert_int_equal(comm_allreduce(me->world, (comm_class)k, a, 0, COMM_SUM), RT_OK);
        assert_int_equal(comm_allgather(me->world, (comm_class)k, a, 7, b), RT_OK);
        for (int other = 0; other < COMM_CLASSES; other++) {
            comm_counter now = comm_count(me->world, (comm_class)other);
            uint64_t own = other == k;
            assert_int_equal(now.calls - before[other].calls, 3 * own);
            assert_int_equal(now.bytes - before[other].bytes, 17 * sizeof(float) * own * moved);
        }
    }
    kern_buf_free(a);
    kern_buf_free(b);
}

static void check_agree(const comm_rank_case *me)
{
    int rank = comm_rank(me->world), ranks = comm_ranks(me->world);
    assert_int_equal(comm_agree(me->world, RT_OK), RT_OK);

    int middle = ranks / 2;
    rt_status mine = RT_OK;
    if (rank == middle)
        mine = RT_FAIL(RT_ERR_FORMAT, "shard %d: bad magic", rank);
    assert_int_equal(comm_agree(me->world, mine), RT_ERR_FORMAT);
    char want[64];
    snprintf(want, sizeof want, "shard %d: bad magic", middle);
    assert_string_equal(rt_last_error(), want);

    // Several fail: all speak with the lowest one's words.
    mine = RT_OK;
    if (rank >= middle)
        mine = RT_FAIL(rank == middle ? RT_ERR_IO : RT_ERR_NOMEM, "rank %d is unhappy", rank);
    assert_int_equal(comm_agree(me->world, mine), RT_ERR_IO);
    snprintf(want, sizeof want, "rank %d is unhappy", middle);
    assert_string_equal(rt_last_error(), want);
    assert_int_equal(comm_agree(me->world, RT_OK), RT_OK);
}

static void check_refusals(const comm_rank_case *me)
{
    kern_buf *f = new_buf(me, KERN_F32, 4), *k = new_buf(me, KERN_I32, 4),
             *h = new_buf(me, KERN_BF16, 4);
    size_t beyond = comm_ranks(me->world) > 1 ? 3 : 5; // elements that do not fit
    assert_int_equal(comm_allreduce(me->world, COMM_MASK, k, 4, COMM_SUM), RT_ERR_INVALID);
    assert_int_equal(comm_allreduce(me->world, COMM_MASK, h, 4, COMM_MAX), RT_ERR_INVALID);
    assert_int_equal(comm_allreduce(me->world, COMM_MASK, f, 5, COMM_SUM), RT_ERR_INVALID);
    assert_int_equal(comm_allgather(me->world, COMM_MASK, f, 1, k), RT_ERR_INVALID);
    assert_int_equal(comm_allgather(me->world, COMM_MASK, f, 1, f), RT_ERR_INVALID);
    kern_buf *g = new_buf(me, KERN_F32, 4);
    assert_int_equal(comm_allgather(me->world, COMM_MASK, f, beyond, g), RT_ERR_INVALID);
    kern_buf_free(g);
    assert_int_equal(comm_ctl_bcast(me->world, comm_ranks(me->world), &beyond, 1), RT_ERR_INVALID);
    assert_int_equal(comm_ctl_bcast(me->world, -1, &beyond, 1), RT_ERR_INVALID);
    // A refused call takes no part in the common order.
    assert_int_equal(comm_ctl_barrier(me->world), RT_OK);
    kern_buf_free(f);
    kern_buf_free(k);
    kern_buf_free(h);
}

static void check_ranks(const comm_rank_case *me)
{
    int own[2] = {comm_rank(me->world), comm_local_rank(me->world)}, all[64][2];
    assert_int_equal(comm_ctl_allgather(me->world, own, sizeof own, all), RT_OK);
    assert_true(comm_local_ranks(me->world) >= 1 &&
                comm_local_ranks(me->world) <= comm_ranks(me->world));
    for (int r = 0; r < comm_ranks(me->world); r++) {
        assert_int_equal(all[r][0], r);
        assert_true(all[r][1] >= 0);
        if (comm_local_ranks(me->world) == comm_ranks(me->world)) // one host
            assert_int_equal(all[r][1], r);
    }
}

const comm_check comm_checks[] = {
    {"ranks", check_ranks},       {"sum", check_sum},
    {"max", check_max},           {"gather", check_gather},
    {"control plane", check_ctl}, {"broadcast of any length", check_bcast_bytes},
    {"pieces", check_pieces},     {"counters", check_counters},
    {"agreement", check_agree},   {"refusals", check_refusals},
};
const size_t comm_checks_len = sizeof comm_checks / sizeof comm_checks[0];
