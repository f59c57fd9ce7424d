// SPDX-License-Identifier: Apache-2.0
// The forward. `x` is the residual stream, replicated on all ranks; each half of a
// layer leaves its contribution in `part`, and the norm that follows adds it.
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
    kern_buf *normed;    // f32 [rows, hidden]
    kern_buf *part;      // f32 [rows, hidden]
    kern_buf *qkv;       // f32 [rows, (heads + 2 kv_heads) head_dim]
    kern_buf *attn;      // f32 [rows, heads head_dim]
    kern_buf *gate_up;   // f32 [rows, 2 ffn]
    kern_buf *ffn;       // f32 [rows, ffn]
    kern_buf *head_in;   // f32 [head_rows, hidden]
    kern_buf *logits;    // f32 [head_rows, vocab shard]
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

static rt_status new_rows(const rt_model *m, int rows, int cols, const char *what, kern_buf **out)
{
    return kern_buf_new(m->group.dev, KERN_F32, (size_t)rows * (size_t)cols, what, out);
}

static rt_status open_activations(rt_model *m)
{
    const int rows = m->limits.rows, hidden = m->config.hidden, ffn = m->plan.ffn.count;
    kern_use_for(m->group.dev, KERN_USE_ACTIVATIONS);
    RT_TRY(new_rows(m, rows, hidden, "residual stream", &m->x));
    RT_TRY(new_rows(m, rows, hidden, "normed rows", &m->normed));
    RT_TRY(new_rows(m, rows, hidden, "partial sums", &m->part));
    RT_TRY(new_rows(m, rows, qkv_cols(m), "q, k and v", &m->qkv));
    RT_TRY(new_rows(m, rows, m->plan.heads.count * m->config.head_dim, "attention", &m->attn));
    RT_TRY(new_rows(m, rows, 2 * ffn, "gate and up", &m->gate_up));
    RT_TRY(new_rows(m, rows, ffn, "MLP", &m->ffn));
    RT_TRY(new_rows(m, m->limits.head_rows, hidden, "head input", &m->head_in));
    return new_rows(m, m->limits.head_rows, m->plan.vocab.count, "logits", &m->logits);
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
static rt_status add_norm(rt_model *m, const kern_buf *add, const kern_buf *weight, int rows)
{
    const kern_rmsnorm_args args = {
        .x = m->x,
        .add = add,
        .weight = weight,
        .out = m->normed,
        .rows = rows,
        .cols = m->config.hidden,
        .eps = (float)m->config.rms_eps,
    };
    return kern_rmsnorm(m->group.dev, &args);
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
    RT_TRY(par_linear_column(&m->group, &qkv));
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
    return par_linear_row(&m->group, &o);
}

static rt_status mlp(rt_model *m, const rt_layer_weights *w, int rows)
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
    RT_TRY(par_linear_column(&m->group, &gate_up));
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
    return par_linear_row(&m->group, &down);
}

rt_status rt_model_forward(rt_model *m, const kern_batch *batch, losa_state *losa,
                           const kern_kv *kv)
{
    RT_CHECK_ARG(batch->rows <= m->limits.rows);
    RT_TRY(embed(m, batch));
    const kern_buf *part = NULL;
    for (int l = 0; l < m->config.layers; l++) {
        const rt_layer_weights *w = &m->weights.layers[l];
        RT_TRY(add_norm(m, part, w->attn_norm, batch->rows));
        RT_TRY(attention(m, l, batch, losa, &kv[l]));
        RT_TRY(add_norm(m, m->part, w->mlp_norm, batch->rows));
        RT_TRY(mlp(m, w, batch->rows));
        part = m->part;
    }
    return add_norm(m, part, m->weights.final_norm, batch->rows);
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
    RT_TRY(par_linear_column(&m->group, &head));
    *logits = m->logits;
    return RT_OK;
}
