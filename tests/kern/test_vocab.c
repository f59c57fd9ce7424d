// SPDX-License-Identifier: Apache-2.0
// Vocabulary operations against softmax, sorting and Gumbel-max in double
// precision; over 1 to 4 uneven shards and 1 to 3 threads; and the frequencies of
// sampled tokens against their probabilities.
#include "runtime/base/rng.h"
#include "tests/kern/vocab_case.h"

#include <stdlib.h>

static kern_sample_row plain_row(void)
{
    return (kern_sample_row){.inv_temperature = 1.0f, .top_p = 1.0f, .seed_lo = 7, .seed_hi = 9};
}

static vocab_case whole(int rows, int vocab, const float *logits, const kern_sample_row *sample)
{
    return (vocab_case){.rows = rows,
                        .vocab = vocab,
                        .mask_id = vocab - 1,
                        .logits = logits,
                        .sample = sample,
                        .threads = 1,
                        .ranks = 1,
                        .cuts = {0, vocab}};
}

// ---- references --------------------------------------------------------------------

static double scaled(const vocab_case *c, int row, int id)
{
    const float l =
        c->logits[(size_t)row * (size_t)c->vocab + (size_t)id] * c->sample[row].inv_temperature;
    return isnan(l) ? -(double)INFINITY : (double)l;
}

// Softmax over the whole vocabulary: p[id]; returns the entropy.
static double softmax(const vocab_case *c, int row, double *p)
{
    double m = -(double)INFINITY, z = 0.0, entropy = 0.0;
    for (int id = 0; id < c->vocab; id++)
        m = fmax(m, scaled(c, row, id));
    for (int id = 0; id < c->vocab; id++)
        z += p[id] = exp(scaled(c, row, id) - m);
    for (int id = 0; id < c->vocab; id++) {
        p[id] /= z;
        entropy -= p[id] > 0.0 ? p[id] * log(p[id]) : 0.0;
    }
    return entropy;
}

static double gumbel_of(const kern_sample_row *s, int id)
{
    const uint32_t counter[4] = {s->position, s->step, (uint32_t)id, 0};
    const uint64_t key = (uint64_t)s->seed_hi << 32 | s->seed_lo;
    const rt_philox random = rt_philox4x32(key, counter);
    return -log(-log((double)rt_uniform_open(random.v[0])));
}

// The best token with l >= threshold.
static int expect_token(const vocab_case *c, int row, double threshold)
{
    int best = -1;
    double best_score = 0.0;
    for (int id = 0; id < c->vocab; id++) {
        const double l = scaled(c, row, id);
        if (id == c->mask_id || l < threshold)
            continue;
        const double score = c->sample[row].greedy ? l : l + gumbel_of(&c->sample[row], id);
        if (best < 0 || score > best_score) {
            best = id;
            best_score = score;
        }
    }
    return best;
}

static int descending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

// The smallest logit that top-k and then top-p keep, by sorting. Sets *near where
// top-p hangs on rounding.
static double expect_threshold(const vocab_case *c, int row, bool *near)
{
    const kern_sample_row *s = &c->sample[row];
    double *l = kt_alloc((size_t)c->vocab, sizeof *l);
    int n = 0;
    for (int id = 0; id < c->vocab; id++) {
        if (id != c->mask_id)
            l[n++] = scaled(c, row, id);
    }
    qsort(l, (size_t)n, sizeof *l, descending);
    if (s->top_k > 0 && s->top_k < n) {
        const double floor = l[s->top_k - 1];
        for (n = s->top_k; n < c->vocab - 1 && l[n] == floor;) // ties pass
            n++;
    }
    double threshold = l[n - 1], total = 0.0, before = 0.0;
    for (int i = 0; i < n; i++)
        total += exp(l[i] - l[0]);
    *near = false;
    for (int i = 0; i < n && s->top_p < 1.0f; i++) {
        const double margin = before - (double)s->top_p * total;
        *near |= before > 0.0 && fabs(margin) < 1e-6 * total && !(i > 0 && l[i] == l[i - 1]);
        if (i > 0 && l[i] != l[i - 1] && margin > 0.0)
            break;
        threshold = l[i];
        before += exp(l[i] - l[0]);
    }
    rt_free(l);
    return threshold;
}

static uint32_t key_of(double value)
{
    const float f = (float)value + 0.0f; // -0 ties with 0
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// ---- tests -------------------------------------------------------------------------

static void check_statistics(const vocab_case *c, const vocab_result *got)
{
    double *p = kt_alloc((size_t)c->vocab, sizeof *p);
    for (int r = 0; r < c->rows; r++) {
        const double entropy = softmax(c, r, p), want = p[got->token[r]];
        // 1e-6: f32 rounding of l, of l - m, of e and of the stored sums.
        if (fabs((double)got->confidence[r] - want) > 1e-6 * fmax(want, 1e-3))
            fail_msg("row %d: confidence %g, want %g", r, (double)got->confidence[r], want);
        if (fabs((double)got->entropy[r] - entropy) > 2e-6 * fmax(entropy, 1.0))
            fail_msg("row %d: entropy %.9g, want %.9g", r, (double)got->entropy[r], entropy);
    }
    rt_free(p);
}

static void test_confidence_and_entropy(void **state)
{
    (void)state;
    const int shapes[][2] = {{1, 2}, {3, 17}, {5, 1000}, {2, 1025}, {2, 50001}};
    const float deviations[] = {0.0f, 0.01f, 2.0f, 12.0f};
    kt_rng rng = {1};
    for (size_t i = 0; i < KT_COUNT(shapes) * KT_COUNT(deviations); i++) {
        const int rows = shapes[i / 4][0], vocab = shapes[i / 4][1];
        float *logits = kt_random(&rng, (size_t)(rows * vocab), deviations[i % 4]);
        kern_sample_row sample[5];
        for (int r = 0; r < rows; r++) {
            sample[r] = plain_row();
            sample[r].inv_temperature = r % 2 ? 1.25f : 1.0f;
            sample[r].position = (uint32_t)r;
            logits[r * vocab + vocab / 2] = r % 3 ? -INFINITY : 1.0f;
        }
        const vocab_case c = whole(rows, vocab, logits, sample);
        vocab_result got;
        vc_run(&c, &got);
        check_statistics(&c, &got);
        for (int r = 0; r < rows; r++)
            assert_int_equal(got.token[r], expect_token(&c, r, -(double)INFINITY));
        vc_free_result(&got);
        rt_free(logits);
    }
}

// Rows of every kind: greedy or not, with and without top-k and top-p.
static void mixed_rows(kt_rng *rng, int rows, kern_sample_row *sample)
{
    for (int r = 0; r < rows; r++) {
        sample[r] = (kern_sample_row){
            .inv_temperature = r % 3 ? kt_uniform(rng, 0.5f, 3.0f) : 1.0f,
            .greedy = r % 5 == 0,
            .top_k = r % 2 ? kt_int(rng, 1, 60) : 0,
            .top_p = r % 4 < 2 ? 1.0f : kt_uniform(rng, 0.0f, 1.0f),
            .seed_lo = (uint32_t)kt_next(rng),
            .seed_hi = (uint32_t)kt_next(rng),
            .position = (uint32_t)kt_next(rng),
            .step = (uint32_t)kt_int(rng, 0, 9),
        };
    }
}

static void test_shards_and_threads_agree(void **state)
{
    (void)state;
    enum { ROWS = 24, VOCAB = 3001 };
    const int cuts[4][VC_RANKS + 1] = {
        {0, VOCAB}, {0, 1000, VOCAB}, {0, 1, 1999, VOCAB}, {0, 700, 700, 2900, VOCAB}};
    kt_rng rng = {2};
    float *logits = kt_random(&rng, ROWS * VOCAB, 3.0f);
    kern_sample_row sample[ROWS];
    mixed_rows(&rng, ROWS, sample);
    vocab_case c = whole(ROWS, VOCAB, logits, sample);
    c.filter = true;
    vocab_result first;
    vc_run(&c, &first);
    check_statistics(&c, &first);
    for (c.threads = 1; c.threads <= 3; c.threads++) {
        for (c.ranks = 1; c.ranks <= VC_RANKS; c.ranks++) {
            memcpy(c.cuts, cuts[c.ranks - 1], sizeof c.cuts);
            vocab_result got;
            vc_run(&c, &got);
            KT_SAME(got.token, first.token, ROWS, "shards");
            if (c.ranks == 1) {
                KT_SAME(got.confidence, first.confidence, ROWS, "threads");
                KT_SAME(got.entropy, first.entropy, ROWS, "threads");
                KT_SAME(got.threshold, first.threshold, ROWS, "threads");
            }
            for (int r = 0; r < ROWS; r++) {
                assert_true(fabsf(got.confidence[r] - first.confidence[r]) <= 1e-6f);
                assert_true(fabsf(got.entropy[r] - first.entropy[r]) <=
                            1e-6f * fmaxf(1.0f, first.entropy[r]));
            }
            vc_free_result(&got);
        }
    }
    vc_free_result(&first);
    rt_free(logits);
}

static void test_row_alone_gives_the_same(void **state)
{
    (void)state;
    enum { ROWS = 9, VOCAB = 777 };
    kt_rng rng = {3};
    float *logits = kt_random(&rng, ROWS * VOCAB, 3.0f);
    kern_sample_row sample[ROWS];
    mixed_rows(&rng, ROWS, sample);
    vocab_case c = whole(ROWS, VOCAB, logits, sample);
    c.filter = true;
    c.threads = 2;
    vocab_result all;
    vc_run(&c, &all);
    for (int r = 0; r < ROWS; r++) {
        vocab_case one = whole(1, VOCAB, logits + r * VOCAB, sample + r);
        one.filter = true;
        vocab_result got;
        vc_run(&one, &got);
        assert_int_equal(got.token[0], all.token[r]);
        KT_SAME(got.confidence, all.confidence + r, 1, "confidence");
        KT_SAME(got.entropy, all.entropy + r, 1, "entropy");
        vc_free_result(&got);
    }
    vc_free_result(&all);
    rt_free(logits);
}

// Fills logits of many kinds; every third row has few distinct values, so ties.
static float *tied_logits(kt_rng *rng, int rows, int vocab)
{
    float *logits = kt_random(rng, (size_t)(rows * vocab), 2.0f);
    for (int r = 0; r < rows; r += 3) {
        for (int id = 0; id < vocab; id++)
            logits[r * vocab + id] = roundf(logits[r * vocab + id] * 2.0f) / 2.0f;
    }
    return logits;
}

static void test_filters_match_sorting(void **state)
{
    (void)state;
    enum { ROWS = 60, ROUNDS = 8 };
    kt_rng rng = {4};
    int compared = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const int vocab = kt_int(&rng, 2, 900);
        float *logits = tied_logits(&rng, ROWS, vocab);
        kern_sample_row sample[ROWS];
        mixed_rows(&rng, ROWS, sample);
        vocab_case c = whole(ROWS, vocab, logits, sample);
        c.filter = true;
        c.mask_id = kt_int(&rng, 0, vocab - 1);
        vocab_result got;
        vc_run(&c, &got);
        for (int r = 0; r < ROWS; r++) {
            bool near;
            const double threshold = expect_threshold(&c, r, &near);
            const bool off = sample[r].top_k == 0 && sample[r].top_p == 1.0f;
            if (near)
                continue;
            compared++;
            assert_int_equal(got.threshold[r], off ? 0 : key_of(threshold));
            assert_int_equal(got.token[r], expect_token(&c, r, threshold));
        }
        vc_free_result(&got);
        rt_free(logits);
    }
    assert_true(compared > ROWS * ROUNDS * 9 / 10);
}

static void test_top_p_takes_the_token_that_crosses(void **state)
{
    (void)state;
    enum { VOCAB = 6, ROWS = 7 };
    // Masses 8, 4, 2, 1, 1 and the mask: powers of two, so sums are exact.
    float logits[ROWS * VOCAB];
    const double mass[VOCAB] = {8, 4, 2, 1, 1, 100};
    // Mass before a token: 0, 8, 12, 14, 14 of 16. A token that starts exactly at
    // top_p stays; ties stay together.
    const float top_p[ROWS] = {0.0f, 0.25f, 0.499f, 0.6f, 0.8f, 0.9f, 0.99f};
    const int kept[ROWS] = {1, 1, 1, 2, 3, 5, 5};
    kern_sample_row sample[ROWS];
    for (int r = 0; r < ROWS; r++) {
        for (int id = 0; id < VOCAB; id++)
            logits[r * VOCAB + id] = (float)log(mass[id]);
        sample[r] = plain_row();
        sample[r].top_p = top_p[r];
    }
    vocab_case c = whole(ROWS, VOCAB, logits, sample);
    c.filter = true;
    vocab_result got;
    vc_run(&c, &got);
    for (int r = 0; r < ROWS; r++)
        assert_int_equal(got.threshold[r], key_of((double)logits[kept[r] - 1]));
    vc_free_result(&got);
}

static void test_equal_masses_tie_at_the_boundary(void **state)
{
    (void)state;
    enum { VOCAB = 5 };
    // Two pairs of equal tokens; e^0 = 1 and e^-200 = 0, so the masses are 1 1 0 0.
    const float logits[VOCAB] = {0.0f, -200.0f, 0.0f, -200.0f, 50.0f};
    kern_sample_row sample = plain_row();
    vocab_case c = whole(1, VOCAB, logits, &sample);
    c.filter = true;
    c.mask_id = 4;
    const struct {
        int top_k;
        float top_p;
        float last;
    } cases[] = {{1, 1.0f, 0.0f}, {2, 1.0f, 0.0f},   {3, 1.0f, -200.0f}, {9, 1.0f, -200.0f},
                 {0, 0.1f, 0.0f}, {0, 0.999f, 0.0f}, {3, 0.5f, 0.0f}};
    for (size_t i = 0; i < KT_COUNT(cases); i++) {
        sample.top_k = cases[i].top_k;
        sample.top_p = cases[i].top_p;
        vocab_result got;
        vc_run(&c, &got);
        // The mask's logit of 50 makes every other mass tiny but not zero.
        assert_int_equal(got.threshold[0], key_of((double)cases[i].last));
        vc_free_result(&got);
    }
}

// A skipped TOP_K leaves the state of an earlier step; rows without top_k ignore it.
static void test_top_p_alone_ignores_stale_state(void **state)
{
    (void)state;
    const float logits[4] = {3.0f, 2.0f, 1.0f, 0.0f};
    kern_sample_row sample = plain_row();
    sample.top_p = 0.8f; // masses .64 .24 .09 .03: two tokens
    const vocab_case c = whole(1, 4, logits, &sample);
    kern_dev *dev = kt_open(1);
    vc_rank rank;
    vc_open_rank(dev, &c, 0, &rank);
    vc_norms(dev, &c, &rank);
    vc_filter(dev, &c, &rank, KERN_FILTER_TOP_P); // the state is poison
    int32_t *words = kt_take(rank.state, VC_STATE);
    assert_int_equal((uint32_t)words[0], key_of(2.0));
    rt_free(words);
    vc_close_rank(&rank);
    kern_dev_close(dev);
}

static void test_mask_is_never_picked(void **state)
{
    (void)state;
    enum { VOCAB = 4, ROWS = 6 };
    float logits[ROWS * VOCAB];
    kern_sample_row sample[ROWS];
    for (int r = 0; r < ROWS; r++) {
        for (int id = 0; id < VOCAB; id++)
            logits[r * VOCAB + id] = id == 2 ? 1000.0f : (float)-id;
        sample[r] = plain_row();
        sample[r].position = (uint32_t)r;
        sample[r].greedy = r % 2;
        sample[r].top_k = r % 3;
        sample[r].top_p = r < 3 ? 1.0f : 0.5f; // all mass beside the mask underflows
    }
    vocab_case c = whole(ROWS, VOCAB, logits, sample);
    c.mask_id = 2;
    for (int filter = 0; filter < 2; filter++) {
        c.filter = filter;
        vocab_result got;
        vc_run(&c, &got);
        for (int r = 0; r < ROWS; r++) {
            assert_in_range(got.token[r], 0, VOCAB - 1);
            assert_int_not_equal(got.token[r], 2);
            assert_true(got.confidence[r] == 0.0f && got.entropy[r] == 0.0f);
        }
        vc_free_result(&got);
    }
}

static void test_bad_logits_do_not_crash(void **state)
{
    (void)state;
    enum { VOCAB = 5, ROWS = 5 };
    const float inf = INFINITY;
    const float logits[ROWS * VOCAB] = {
        NAN,   NAN,    NAN,  NAN,  NAN,  //
        -inf,  NAN,    -inf, -inf, 1.0f, //
        NAN,   2.0f,   -NAN, -inf, 0.0f, //
        inf,   inf,    1.0f, NAN,  0.0f, //
        3e38f, -3e38f, 0.0f, inf,  -inf,
    };
    const int32_t greedy[ROWS] = {0, 0, 1, 0, 3};
    kern_sample_row sample[ROWS];
    for (int pass = 0; pass < 4; pass++) {
        for (int r = 0; r < ROWS; r++) {
            sample[r] = plain_row();
            sample[r].greedy = pass % 2 == 0;
            sample[r].top_k = pass / 2 ? 3 : 0;
            sample[r].top_p = pass / 2 ? 0.9f : 1.0f;
        }
        vocab_case c = whole(ROWS, VOCAB, logits, sample);
        c.filter = pass / 2;
        vocab_result got;
        vc_run(&c, &got);
        for (int r = 0; r < ROWS; r++) {
            assert_in_range(got.token[r], 0, VOCAB - 2);
            assert_true(isfinite(got.confidence[r]) && isfinite(got.entropy[r]));
            if (sample[r].greedy)
                assert_int_equal(got.token[r], greedy[r]);
        }
        vc_free_result(&got);
    }
}

static void test_greedy_ties_take_the_lower_id(void **state)
{
    (void)state;
    const float logits[8] = {0, 1, 5, 2, 5, 5, 1, 0};
    kern_sample_row sample = plain_row();
    sample.greedy = 1;
    vocab_case c = whole(1, 8, logits, &sample);
    const int cuts[4][VC_RANKS + 1] = {{0, 8}, {0, 3, 8}, {0, 2, 4, 8}, {0, 0, 5, 5, 8}};
    for (c.ranks = 1; c.ranks <= VC_RANKS; c.ranks++) {
        memcpy(c.cuts, cuts[c.ranks - 1], sizeof c.cuts);
        vocab_result got;
        vc_run(&c, &got);
        assert_int_equal(got.token[0], 2);
        vc_free_result(&got);
    }
}

// Counts of sampled tokens over many rows, against n p: chi-square.
static double chi_square(const vocab_case *c, const vocab_result *got, double *cells)
{
    double *p = kt_alloc((size_t)c->vocab, sizeof *p);
    double *seen = kt_alloc((size_t)c->vocab, sizeof *seen);
    softmax(c, 0, p);
    const double open = 1.0 - p[c->mask_id];
    for (int r = 0; r < c->rows; r++)
        seen[got->token[r]] += 1.0;
    double sum = 0.0;
    *cells = 0.0;
    for (int id = 0; id < c->vocab; id++) {
        const double want = c->rows * p[id] / open;
        if (id == c->mask_id)
            continue;
        sum += (seen[id] - want) * (seen[id] - want) / want;
        *cells += 1.0;
    }
    rt_free(p);
    rt_free(seen);
    return sum;
}

static void test_sampling_follows_softmax(void **state)
{
    (void)state;
    enum { ROWS = 40000, VOCAB = 12 };
    const float one[VOCAB] = {0, 1, 2, -1, 0.5f, 1.5f, -2, 0, 1, 2, 0.3f, 3};
    float *logits = kt_floats(ROWS * VOCAB);
    kern_sample_row *sample = kt_alloc(ROWS, sizeof *sample);
    // The number that varies: position, step, low and high half of the seed.
    for (int varied = 0; varied < 4; varied++) {
        for (int r = 0; r < ROWS; r++) {
            memcpy(logits + r * VOCAB, one, sizeof one);
            sample[r] = plain_row();
            sample[r].inv_temperature = 1.25f;
            uint32_t *const fields[] = {&sample[r].position, &sample[r].step, &sample[r].seed_lo,
                                        &sample[r].seed_hi};
            *fields[varied] = (uint32_t)r;
        }
        vocab_case c = whole(ROWS, VOCAB, logits, sample);
        c.threads = 2;
        vocab_result got;
        vc_run(&c, &got);
        double cells;
        const double chi = chi_square(&c, &got, &cells);
        // 10 degrees of freedom: 29.6 is passed by chance once in 1000.
        assert_true(cells == VOCAB - 1);
        if (!(chi < 29.6))
            fail_msg("chi-square %g when field %d varies", chi, varied);
        vc_free_result(&got);
    }
    rt_free(sample);
    rt_free(logits);
}

static void test_vocabulary_of_the_mask_alone(void **state)
{
    (void)state;
    const float logit = 1.0f;
    const kern_sample_row sample = plain_row();
    const vocab_case c = whole(1, 1, &logit, &sample);
    vocab_result got;
    vc_run(&c, &got);
    assert_int_equal(got.token[0], -1);
    assert_true(got.confidence[0] == 0.0f);
    vc_free_result(&got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_confidence_and_entropy),
        cmocka_unit_test(test_shards_and_threads_agree),
        cmocka_unit_test(test_row_alone_gives_the_same),
        cmocka_unit_test(test_filters_match_sorting),
        cmocka_unit_test(test_top_p_takes_the_token_that_crosses),
        cmocka_unit_test(test_equal_masses_tie_at_the_boundary),
        cmocka_unit_test(test_top_p_alone_ignores_stale_state),
        cmocka_unit_test(test_mask_is_never_picked),
        cmocka_unit_test(test_bad_logits_do_not_crash),
        cmocka_unit_test(test_greedy_ties_take_the_lower_id),
        cmocka_unit_test(test_sampling_follows_softmax),
        cmocka_unit_test(test_vocabulary_of_the_mask_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
