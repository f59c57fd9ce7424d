// SPDX-License-Identifier: Apache-2.0
#include "runtime/model/weights.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/model/finite.h"

#include <stdio.h>

// What every load needs; `layer` is -1 outside the layers.
typedef struct loader {
    kern_dev *dev;
    const par_plan *plan;
    const rt_model_config *config;
    rt_weights_source source;
    int layer;
    uint32_t buffers; // made so far: seeds of random ones
} loader;

// Deviation of random weights; the initializer_range of transformers.
static const float deviation = 0.02f;

// A part of a stored matrix [rows, cols] (cols 0: a vector), to be uploaded from
// element `first` of the destination on.
typedef struct slice {
    const char *name;
    int rows, cols;
    par_range row, col; // count 0 = the whole axis
} slice;

static void tensor_name(const loader *ld, const char *name, char *out, size_t size)
{
    if (ld->layer < 0)
        snprintf(out, size, "%s", name);
    else
        snprintf(out, size, "model.layers.%d.%s", ld->layer, name);
}

// A part of a stored matrix: rows of a tensor, some of their columns.
typedef struct stored_part {
    rt_tensor tensor;
    par_range row, col;
    size_t stride; // elements from row to row
} stored_part;

static const char *part_data(const stored_part *p, int row)
{
    const size_t skip = (size_t)row * p->stride + (size_t)p->col.first;
    return (const char *)p->tensor.data + skip * kern_dtype_size(p->tensor.dtype);
}

// From the first byte of a row on to the last one of `rows`.
static size_t part_span(const stored_part *p, int rows)
{
    const size_t elements = (size_t)(rows - 1) * p->stride + (size_t)p->col.count;
    return elements * kern_dtype_size(p->tensor.dtype);
}

static void report(const loader *ld, const stored_part *p, int rows)
{
    rt_load_progress *progress = ld->source.progress;
    const size_t numbers = (size_t)rows * (size_t)p->col.count;
    if (!progress)
        return;
    progress->done += numbers * kern_dtype_size(p->tensor.dtype);
    if (progress->fn)
        progress->fn(progress->ctx, progress->done);
}

static rt_status upload_rows(const loader *ld, const stored_part *p, int row, int rows,
                             kern_buf *dst, size_t first)
{
    bool nonfinite = false;
    const kern_upload_args upload = {
        .dst = dst,
        .first = first,
        .src = part_data(p, row),
        .dtype = p->tensor.dtype,
        .rows = (size_t)rows,
        .cols = (size_t)p->col.count,
        .stride = p->stride,
        .nonfinite = &nonfinite,
    };
    RT_TRY(kern_upload(&upload));
    if (nonfinite && !ld->source.allow_nonfinite)
        RT_TRY(rt_finite_check(&p->tensor, (par_range){row, rows}, p->col));
    return RT_OK;
}

// A window at a time: the next one is on its way from the disk while this one is converted
// and uploaded, and the one before is given back, so that the memory of the host stays bounded.
static rt_status upload_part(const loader *ld, const stored_part *p, kern_buf *dst, size_t first)
{
    enum { WINDOW = 32 << 20 };
    const size_t row_bytes = p->stride * kern_dtype_size(p->tensor.dtype);
    const int window = row_bytes < WINDOW ? (int)(WINDOW / row_bytes) : 1;
    const int end = p->row.first + p->row.count;
    for (int row = p->row.first, next; row < end; row = next) {
        next = end - row < window ? end : row + window;
        if (next < end)
            rt_map_want(part_data(p, next),
                        part_span(p, end - next < window ? end - next : window));
        RT_TRY(upload_rows(ld, p, row, next - row, dst, first));
        rt_map_drop(part_data(p, row), part_span(p, next - row));
        report(ld, p, next - row);
        first += (size_t)(next - row) * (size_t)p->col.count;
    }
    return RT_OK;
}

static rt_status upload_slice(const loader *ld, const slice *s, kern_buf *dst, size_t *first)
{
    char name[128];
    tensor_name(ld, s->name, name, sizeof name);
    stored_part p = {.stride = s->cols ? (size_t)s->cols : 1};
    RT_TRY(rt_checkpoint_find(ld->source.ckpt, name, s->rows, s->cols, &p.tensor));
    p.row = s->row.count ? s->row : (par_range){0, s->rows};
    p.col = s->col.count ? s->col : (par_range){0, (int)p.stride};
    if (kern_dev_is_dry(ld->dev))
        report(ld, &p, p.row.count);
    else
        RT_TRY(upload_part(ld, &p, dst, *first));
    *first += (size_t)p.row.count * (size_t)p.col.count;
    return RT_OK;
}

static rt_status fill_random(const loader *ld, size_t count, kern_buf *dst)
{
    const kern_fill_normal_args fill = {
        .dst = dst,
        .count = count,
        .seed = (uint64_t)ld->plan->rank << 32 | ld->buffers,
        .scale = deviation,
    };
    return kern_fill_normal(ld->dev, &fill);
}

// Loads slices one after the other into a new buffer of `count` elements.
static rt_status load(loader *ld, kern_dtype dtype, size_t count, const slice *slices, size_t n,
                      kern_buf **out)
{
    RT_TRY(kern_buf_new(ld->dev, dtype, count, slices[0].name, out));
    ld->buffers++;
    if (!ld->source.ckpt)
        return fill_random(ld, count, *out);
    size_t first = 0;
    for (size_t i = 0; i < n; i++)
        RT_TRY(upload_slice(ld, &slices[i], *out, &first));
    return RT_OK;
}

static rt_status fill_ones(const loader *ld, const char *name, int count, kern_buf **out)
{
    float *ones;
    RT_TRY(RT_ALLOC(ones, (size_t)count, name));
    for (int i = 0; i < count; i++)
        ones[i] = 1.0f;
    rt_status status = kern_buf_new(ld->dev, KERN_F32, (size_t)count, name, out);
    if (status == RT_OK)
        status = kern_write(*out, 0, ones, (size_t)count);
    rt_free(ones);
    return status;
}

// The weight of a norm.
static rt_status load_norm(loader *ld, const char *name, int count, kern_buf **out)
{
    if (!ld->source.ckpt)
        return fill_ones(ld, name, count, out);
    const slice s = {.name = name, .rows = count};
    return load(ld, KERN_F32, (size_t)count, &s, 1, out);
}

// Matrices are kept as stored, as far as the device can.
static rt_status matrix_dtype(const loader *ld, const slice *s, kern_dtype *out)
{
    if (!ld->source.ckpt) {
        *out = kern_dev_weight_dtype(ld->dev, KERN_BF16);
        return RT_OK;
    }
    char name[128];
    tensor_name(ld, s->name, name, sizeof name);
    rt_tensor t;
    RT_TRY(rt_checkpoint_find(ld->source.ckpt, name, s->rows, s->cols, &t));
    *out = kern_dev_weight_dtype(ld->dev, t.dtype);
    return RT_OK;
}

static rt_status load_matrix(loader *ld, size_t count, const slice *slices, size_t n,
                             kern_buf **out)
{
    kern_dtype dtype;
    RT_TRY(matrix_dtype(ld, &slices[0], &dtype));
    return load(ld, dtype, count, slices, n, out);
}

static par_range head_rows(par_range heads, int head_dim)
{
    return (par_range){heads.first * head_dim, heads.count * head_dim};
}

static rt_status load_attention(loader *ld, rt_layer_weights *w)
{
    const rt_model_config *c = ld->config;
    const int d = c->head_dim;
    const par_range q = head_rows(ld->plan->heads, d), kv = head_rows(ld->plan->kv_heads, d);
    const int qkv_rows = q.count + 2 * kv.count;
    const slice qkv[] = {
        {"self_attn.q_proj.weight", c->heads * d, c->hidden, q, {0, 0}},
        {"self_attn.k_proj.weight", c->kv_heads * d, c->hidden, kv, {0, 0}},
        {"self_attn.v_proj.weight", c->kv_heads * d, c->hidden, kv, {0, 0}},
    };
    RT_TRY(load_matrix(ld, (size_t)qkv_rows * (size_t)c->hidden, qkv, 3, &w->qkv));
    if (c->qkv_bias) {
        const slice bias[] = {
            {"self_attn.q_proj.bias", c->heads * d, 0, q, {0, 0}},
            {"self_attn.k_proj.bias", c->kv_heads * d, 0, kv, {0, 0}},
            {"self_attn.v_proj.bias", c->kv_heads * d, 0, kv, {0, 0}},
        };
        RT_TRY(load(ld, KERN_F32, (size_t)qkv_rows, bias, 3, &w->qkv_bias));
    }
    if (c->qk_norm) {
        RT_TRY(load_norm(ld, "self_attn.q_norm.weight", d, &w->q_norm));
        RT_TRY(load_norm(ld, "self_attn.k_norm.weight", d, &w->k_norm));
    }
    const slice o = {"self_attn.o_proj.weight", c->hidden, c->heads * d, {0, 0}, q};
    return load_matrix(ld, (size_t)c->hidden * (size_t)q.count, &o, 1, &w->o);
}

static rt_status load_mlp(loader *ld, rt_layer_weights *w)
{
    const rt_model_config *c = ld->config;
    const par_range ffn = ld->plan->ffn;
    const slice gate_up[] = {
        {"mlp.gate_proj.weight", c->ffn, c->hidden, ffn, {0, 0}},
        {"mlp.up_proj.weight", c->ffn, c->hidden, ffn, {0, 0}},
    };
    const size_t part = (size_t)ffn.count * (size_t)c->hidden;
    RT_TRY(load_matrix(ld, 2 * part, gate_up, 2, &w->gate_up));
    const slice down = {"mlp.down_proj.weight", c->hidden, c->ffn, {0, 0}, ffn};
    return load_matrix(ld, part, &down, 1, &w->down);
}

static rt_status load_layers(loader *ld, rt_weights *w)
{
    const rt_model_config *c = ld->config;
    RT_TRY(RT_ALLOC(w->layers, (size_t)c->layers, "layer table"));
    w->layer_count = c->layers;
    for (ld->layer = 0; ld->layer < c->layers; ld->layer++) {
        rt_layer_weights *layer = &w->layers[ld->layer];
        RT_TRY(load_norm(ld, "input_layernorm.weight", c->hidden, &layer->attn_norm));
        RT_TRY(load_norm(ld, "post_attention_layernorm.weight", c->hidden, &layer->mlp_norm));
        RT_TRY(load_attention(ld, layer));
        RT_TRY(load_mlp(ld, layer));
    }
    ld->layer = -1;
    return RT_OK;
}

static rt_status load_all(loader *ld, rt_weights *w)
{
    const rt_model_config *c = ld->config;
    const par_range vocab = ld->plan->vocab;
    const size_t shard = (size_t)vocab.count * (size_t)c->hidden;
    const slice embed = {"model.embed_tokens.weight", c->vocab, c->hidden, vocab, {0, 0}};
    RT_TRY(load_matrix(ld, shard, &embed, 1, &w->embed));
    RT_TRY(load_layers(ld, w));
    RT_TRY(load_norm(ld, "model.norm.weight", c->hidden, &w->final_norm));
    // A tied head may be left out of the file or be stored again; the config decides,
    // and a file without a head can only be tied.
    const rt_checkpoint *ckpt = ld->source.ckpt;
    if (c->tied_head || (ckpt && !rt_checkpoint_has(ckpt, "lm_head.weight"))) {
        w->head = w->embed;
        return RT_OK;
    }
    const slice head = {"lm_head.weight", c->vocab, c->hidden, vocab, {0, 0}};
    return load_matrix(ld, shard, &head, 1, &w->head);
}

rt_status rt_weights_load(kern_dev *dev, const par_plan *plan, const rt_model_config *config,
                          const rt_weights_source *source, rt_weights *out)
{
    *out = (rt_weights){0};
    loader ld = {.dev = dev, .plan = plan, .config = config, .source = *source, .layer = -1};
    kern_use_for(dev, KERN_USE_WEIGHTS);
    const rt_status status = load_all(&ld, out);
    if (status != RT_OK)
        rt_weights_free(out);
    return status;
}

static void free_layer(rt_layer_weights *w)
{
    kern_buf *const owned[] = {w->attn_norm, w->mlp_norm, w->qkv,     w->qkv_bias, w->q_norm,
                               w->k_norm,    w->o,        w->gate_up, w->down};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        kern_buf_free(owned[i]);
}

void rt_weights_free(rt_weights *w)
{
    for (int l = 0; l < w->layer_count; l++)
        free_layer(&w->layers[l]);
    rt_free(w->layers);
    if (w->head != w->embed)
        kern_buf_free(w->head);
    kern_buf_free(w->embed);
    kern_buf_free(w->final_norm);
    *w = (rt_weights){0};
}
