// SPDX-License-Identifier: Apache-2.0
// The forward. `x` is the residual stream, replicated on all ranks; each half of a
// layer leaves its contribution in `part`, and the norm that follows adds those of all ranks.
#include "runtime/model/model.h"

#include "runtime/base/mem.h"
#include "runtime/model/rope.h"

struct rt_model {
    par_group group;
    par_plan plan;
    rt_model_config config;
    rt_model_limits limits;
    rt_weights weights;
    kern_buf *cos, *sin; // f32 [positions, head_dim / 2]
    kern_buf *x;         // f32 [rows, hidden]
    kern_buf *part;      // f32 [rows, hidden]
    kern_buf *qkv;       // f32 [rows, (heads + 2 kv_heads) head_dim]
    kern_buf *logits;    // f32 [head_rows, vocab shard], with room for the widest shard
    // What only linears read, in the type of their weights:
    kern_buf *normed;  // [rows, hidden]
    kern_buf *attn;    // [rows, heads head_dim]
    kern_buf *gate_up; // [rows, 2 ffn]
    kern_buf *ffn;     // [rows, ffn]
    kern_buf *head_in; // [head_rows, hidden]
};

static int qkv_cols(const rt_model *m)
{
    return (m->plan.heads.count + 2 * m->plan.kv_heads.count) * m->config.head_dim;
}

static rt_status fill_rope(rt_model *m, size_t count)
{
    float *tables;
    RT_TRY(RT_ALLOC(tables, 2 * count, "rotary tables"));
    rt_status status = rt_rope_tables(&m->config.rope, m->config.head_dim, m->limits.positions,
                                      tables, tables + count);
    RT_TRY_GOTO(status, status, free_tables);
    RT_TRY_GOTO(status, kern_write(m->cos, 0, tables, count), free_tables);
    RT_TRY_GOTO(status, kern_write(m->sin, 0, tables + count, count), free_tables);
free_tables:
    rt_free(tables);
    return status;
}

static rt_status open_rope(rt_model *m)
{
    const size_t count = (size_t)m->limits.positions * (size_t)(m->config.head_dim / 2);
    kern_use_for(m->group.dev, KERN_USE_TABLES);
    RT_TRY(kern_buf_new(m->group.dev, KERN_F32, count, "rotary table", &m->cos));
    RT_TRY(kern_buf_new(m->group.dev, KERN_F32, count, "rotary table", &m->sin));
    return kern_dev_is_dry(m->group.dev) ? RT_OK : fill_rope(m, count);
}

// The type that all matrices have, or f32.
static kern_dtype matrix_type(const rt_weights *w)
{
    const kern_dtype type = kern_buf_dtype(w->head);
    for (int l = 0; l < w->layer_count; l++) {
        const rt_layer_weights *layer = &w->layers[l];
        const kern_buf *const all[] = {layer->qkv, layer->o, layer->gate_up, layer->down};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            if (kern_buf_dtype(all[i]) != type)
                return KERN_F32;
    }
    return type;
}

static rt_status open_activations(rt_model *m)
{
    const size_t rows = (size_t)m->limits.rows, head_rows = (size_t)m->limits.head_rows;
    const size_t hidden = (size_t)m->config.hidden, ffn = (size_t)m->plan.ffn.count;
    const size_t heads = (size_t)m->plan.heads.count * (size_t)m->config.head_dim;
    const kern_dtype type = matrix_type(&m->weights);
    const struct {
        kern_buf **buf;
        kern_dtype dtype;
        size_t count;
        const char *what;
    } all[] = {
        {&m->x, KERN_F32, rows * hidden, "residual stream"},
        {&m->part, KERN_F32, rows * hidden, "partial sums"},
        {&m->qkv, KERN_F32, rows * (size_t)qkv_cols(m), "q, k and v"},
        {&m->logits, KERN_F32, head_rows * (size_t)m->plan.vocab_rows, "logits"},
        {&m->normed, type, rows * hidden, "normed rows"},
        {&m->attn, type, rows * heads, "attention"},
        {&m->gate_up, type, rows * 2 * ffn, "gate and up"},
        {&m->ffn, type, rows * ffn, "MLP"},
        {&m->head_in, type, head_rows * hidden, "head input"},
    };
    kern_use_for(m->group.dev, KERN_USE_ACTIVATIONS);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        RT_TRY(kern_buf_new(m->group.dev, all[i].dtype, all[i].count, all[i].what, all[i].buf));
    return RT_OK;
}

rt_status rt_model_open(const par_group *group, const par_plan *plan, const rt_model_config *config,
                        const rt_model_limits *limits, const rt_weights_source *source,
                        rt_model **out)
{
    rt_model *m;
    RT_TRY(RT_ALLOC(m, 1, "model"));
    m->group = *group;
    m->plan = *plan;
    m->config = *config;
    m->limits = *limits;
    rt_status status;
    RT_TRY_GOTO(status, rt_weights_load(group->dev, plan, config, source, &m->weights),
                close_model);
    RT_TRY_GOTO(status, open_rope(m), close_model);
    RT_TRY_GOTO(status, open_activations(m), close_model);
    *out = m;
    return RT_OK;
close_model:
    rt_model_close(m);
    return status;
}

void rt_model_close(rt_model *m)
{
    if (!m)
        return;
    kern_buf *const owned[] = {m->cos,  m->sin,     m->x,   m->normed,  m->part,  m->qkv,
                               m->attn, m->gate_up, m->ffn, m->head_in, m->logits};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        kern_buf_free(owned[i]);
    rt_weights_free(&m->weights);
    rt_free(m);
}

// x += add, then normed = rmsnorm(x).
static kern_rmsnorm_args norm_of(rt_model *m, const kern_buf *add, const kern_buf *weight, int rows)
{
    return (kern_rmsnorm_args){
        .x = m->x,
        .add = add,
        .weight = weight,
        .out = m->normed,
        .rows = rows,
        .cols = m->config.hidden,
        .eps = (float)m->config.rms_eps,
    };
}

static rt_status embed(rt_model *m, const kern_batch *batch)
{
    const kern_embed_args args = {
        .table = m->weights.embed,
        .ids = batch->ids,
        .out = m->x,
        .rows = batch->rows,
        .cols = m->config.hidden,
        .first_id = m->plan.vocab.first,
        .shard_rows = m->plan.vocab.count,
    };
    return par_embed(&m->group, &args);
}

static rt_status project_qkv(rt_model *m, const rt_layer_weights *w, const kern_batch *batch)
{
    const kern_linear_args qkv = {
        .x = m->normed,
        .w = w->qkv,
        .bias = w->qkv_bias,
        .y = m->qkv,
        .rows = batch->rows,
        .n = qkv_cols(m),
        .k = m->config.hidden,
    };
    RT_TRY(kern_linear(m->group.dev, &qkv));
    const kern_qk_rope_args rope = {
        .qkv = m->qkv,
        .q_norm = w->q_norm,
        .k_norm = w->k_norm,
        .pos = batch->pos,
        .cos = m->cos,
        .sin = m->sin,
        .rows = batch->rows,
        .heads = m->plan.heads.count,
        .kv_heads = m->plan.kv_heads.count,
        .head_dim = m->config.head_dim,
        .max_pos = m->limits.positions,
        .eps = (float)m->config.rms_eps,
    };
    return kern_qk_rope(m->group.dev, &rope);
}

static rt_status attention(rt_model *m, int layer, const kern_batch *batch, losa_state *losa,
                           const kern_kv *kv)
{
    const rt_layer_weights *w = &m->weights.layers[layer];
    RT_TRY(project_qkv(m, w, batch));
    const losa_layer_args attend = {
        .layer = layer,
        .batch = batch,
        .qkv = m->qkv,
        .x = m->x,
        .kv = *kv,
        .out = m->attn,
    };
    RT_TRY(losa_layer(losa, &attend));
    const kern_linear_args o = {
        .x = m->attn,
        .w = w->o,
        .y = m->part,
        .rows = batch->rows,
        .n = m->config.hidden,
        .k = m->plan.heads.count * m->config.head_dim,
    };
    const kern_rmsnorm_args norm = norm_of(m, m->part, w->mlp_norm, batch->rows);
    return par_linear_row(&m->group, &o, &norm);
}

// `next` is the weight of the norm that follows.
static rt_status mlp(rt_model *m, const rt_layer_weights *w, const kern_buf *next, int rows)
{
    const int ffn = m->plan.ffn.count;
    const kern_linear_args gate_up = {
        .x = m->normed,
        .w = w->gate_up,
        .y = m->gate_up,
        .rows = rows,
        .n = 2 * ffn,
        .k = m->config.hidden,
    };
    RT_TRY(kern_linear(m->group.dev, &gate_up));
    const kern_swiglu_args swiglu = {
        .gate_up = m->gate_up, .out = m->ffn, .rows = rows, .cols = ffn};
    RT_TRY(kern_swiglu(m->group.dev, &swiglu));
    const kern_linear_args down = {
        .x = m->ffn,
        .w = w->down,
        .y = m->part,
        .rows = rows,
        .n = m->config.hidden,
        .k = ffn,
    };
    const kern_rmsnorm_args norm = norm_of(m, m->part, next, rows);
    return par_linear_row(&m->group, &down, &norm);
}

rt_status rt_model_forward(rt_model *m, const kern_batch *batch, losa_state *losa,
                           const kern_kv *kv)
{
    RT_CHECK_ARG(batch->rows <= m->limits.rows);
    const rt_layer_weights *layers = m->weights.layers;
    const kern_rmsnorm_args first = norm_of(m, NULL, layers[0].attn_norm, batch->rows);
    RT_TRY(embed(m, batch));
    RT_TRY(kern_rmsnorm(m->group.dev, &first));
    for (int l = 0; l < m->config.layers; l++) {
        const bool last = l == m->config.layers - 1;
        const kern_buf *next = last ? m->weights.final_norm : layers[l + 1].attn_norm;
        RT_TRY(attention(m, l, batch, losa, &kv[l]));
        RT_TRY(mlp(m, &layers[l], next, batch->rows));
    }
    return RT_OK;
}

rt_status rt_model_head(rt_model *m, const kern_buf *index, int rows, const kern_buf **logits)
{
    RT_CHECK_ARG(rows <= m->limits.head_rows);
    const kern_gather_rows_args gather = {
        .x = m->normed,
        .index = index,
        .out = m->head_in,
        .rows = rows,
        .cols = m->config.hidden,
    };
    RT_TRY(kern_gather_rows(m->group.dev, &gather));
    const kern_linear_args head = {
        .x = m->head_in,
        .w = m->weights.head,
        .y = m->logits,
        .rows = rows,
        .n = m->plan.vocab.count,
        .k = m->config.hidden,
    };
    RT_TRY(kern_linear(m->group.dev, &head));
    *logits = m->logits;
    return RT_OK;
}
