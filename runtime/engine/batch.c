// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/batch.h"

#include "runtime/base/mem.h"

#include <string.h>

static size_t capacity(const rt_batch *b, int array)
{
    switch (array) {
    case RT_BATCH_SEG_ROW0:
        return (size_t)b->max_segs + 1;
    case RT_BATCH_SEG_KIND:
    case RT_BATCH_SEG_SLOT:
    case RT_BATCH_SEG_MASS:
        return (size_t)b->max_segs;
    case RT_BATCH_PAGE_TABLE:
        return (size_t)b->max_segs * (size_t)b->max_pages;
    default:
        return (size_t)b->max_rows;
    }
}

// First element of an array in the arena; of RT_BATCH_ARRAYS: the arena's length.
static size_t place(const rt_batch *b, int array)
{
    enum { ALIGN = 64 }; // elements
    size_t at = 0;
    for (int i = 0; i < array; i++)
        at += (capacity(b, i) + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static rt_status open_arrays(kern_dev *dev, rt_batch *b)
{
    const size_t count = place(b, RT_BATCH_ARRAYS);
    RT_TRY(RT_ALLOC(b->memory, count, "batch"));
    kern_use_for(dev, KERN_USE_BATCH);
    RT_TRY(kern_buf_new(dev, KERN_I32, count, "batch", &b->arena));
    RT_TRY(kern_buf_new_shared(dev, KERN_I32, place(b, RT_BATCH_POS), "outcome of a step",
                               &b->outcome));
    for (int i = 0; i < RT_BATCH_ARRAYS; i++) {
        b->host[i] = b->memory + place(b, i);
        RT_TRY(kern_buf_view(b->arena, place(b, i), capacity(b, i), &b->device[i]));
    }
    b->kern = (kern_batch){
        .ids = b->device[RT_BATCH_IDS],
        .pos = b->device[RT_BATCH_POS],
        .row_state = b->device[RT_BATCH_ROW_STATE],
        .row_seg = b->device[RT_BATCH_ROW_SEG],
        .seg_row0 = b->device[RT_BATCH_SEG_ROW0],
        .seg_kind = b->device[RT_BATCH_SEG_KIND],
        .seg_slot = b->device[RT_BATCH_SEG_SLOT],
        .seg_mass = b->device[RT_BATCH_SEG_MASS],
        .page_table = b->device[RT_BATCH_PAGE_TABLE],
        .kv_slot = b->device[RT_BATCH_KV_SLOT],
        .cache_slot = b->device[RT_BATCH_CACHE_SLOT],
    };
    return RT_OK;
}

rt_status rt_batch_open(kern_dev *dev, int max_rows, int max_segs, int max_pages, rt_batch *out)
{
    *out = (rt_batch){.max_rows = max_rows, .max_segs = max_segs, .max_pages = max_pages};
    const rt_status status = open_arrays(dev, out);
    if (status != RT_OK)
        rt_batch_close(out);
    return status;
}

void rt_batch_close(rt_batch *b)
{
    for (int i = 0; i < RT_BATCH_ARRAYS; i++)
        kern_buf_free(b->device[i]);
    kern_buf_free(b->outcome);
    kern_buf_free(b->arena);
    rt_free(b->memory);
    *b = (rt_batch){0};
}

int rt_segment_denoised(const Pb__Segment *s, int block)
{
    return rt_segment_opens(s) || rt_segment_later(s) ? block : 0;
}

bool rt_segment_opens(const Pb__Segment *s)
{
    return s->kind == KERN_SEG_OPEN || s->kind == KERN_SEG_FIRST;
}

bool rt_segment_later(const Pb__Segment *s)
{
    return s->kind >= KERN_SEG_STEP;
}

// Rows of a segment, from `row` on: those to be committed have a place in the pages, the
// block behind them, which is being denoised, one in the prefix cache.
static void fill_rows(rt_batch *b, const rt_batch_args *args, int seg, int row)
{
    const Pb__Segment *s = args->segments[seg];
    const rt_slot *slot = &args->slots[s->slot];
    const int first = (int)s->first, count = (int)s->count;
    const int committed = count - rt_segment_denoised(s, args->block);
    const int cache = (int)s->slot * args->block;
    int32_t *kv_slot = b->host[RT_BATCH_KV_SLOT] + row;
    int32_t *cache_slot = b->host[RT_BATCH_CACHE_SLOT] + row;
    b->kern.write_rows += committed;
    memcpy(b->host[RT_BATCH_IDS] + row, slot->ids + first, (size_t)count * sizeof(int32_t));
    memcpy(b->host[RT_BATCH_ROW_STATE] + row, slot->state + first, (size_t)count * sizeof(int32_t));
    for (int j = 0; j < count; j++) {
        b->host[RT_BATCH_POS][row + j] = first + j;
        b->host[RT_BATCH_ROW_SEG][row + j] = seg;
    }
    for (int j = 0, pos = first; j < committed; j++, pos++) {
        kv_slot[j] = slot->pages[pos / args->page] * args->page + pos % args->page;
        cache_slot[j] = -1;
    }
    for (int j = committed; j < count; j++) {
        kv_slot[j] = -1;
        cache_slot[j] = args->use_cache ? cache + j - committed : -1;
    }
}

// Pages a segment can refer to: its prefix, and what it writes.
static int segment_pages(const Pb__Segment *s, int page)
{
    return ((int)(s->first + s->count) + page - 1) / page;
}

static void fill_segments(rt_batch *b, const rt_batch_args *args)
{
    int row = 0;
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        b->host[RT_BATCH_SEG_ROW0][i] = row;
        b->host[RT_BATCH_SEG_KIND][i] = (int32_t)s->kind;
        b->host[RT_BATCH_SEG_SLOT][i] = (int32_t)s->slot;
        const bool measures = losa_reading_of(args->attention, (int)s->kind).measures;
        b->host[RT_BATCH_SEG_MASS][i] = measures ? b->kern.mass_segs++ : -1;
        memcpy(b->host[RT_BATCH_PAGE_TABLE] + (size_t)i * (size_t)b->kern.max_pages,
               args->slots[s->slot].pages, (size_t)segment_pages(s, args->page) * sizeof(int32_t));
        fill_rows(b, args, i, row);
        row += (int)s->count;
        if (i < args->sparse)
            b->kern.sparse_rows = row;
    }
    b->host[RT_BATCH_SEG_ROW0][args->count] = row;
}

// The next of 1, 2, 3, 4, 6, 8, 12, ..., as far as there are pages.
static int round_pages(const rt_batch *b, int pages)
{
    int width = 1;
    while (width < pages)
        width += width & (width - 1) ? width / 3 : width > 1 ? width / 2 : 1;
    return width < b->max_pages ? width : b->max_pages;
}

// Counts rows and the longest page table; checks them against the capacities.
static rt_status measure(rt_batch *b, const rt_batch_args *args)
{
    int rows = 0, pages = 1;
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        const int need = segment_pages(s, args->page);
        rows += (int)s->count;
        pages = need > pages ? need : pages;
    }
    if (rows > b->max_rows || args->count > b->max_segs || pages > b->max_pages)
        return RT_FAIL(RT_ERR_INTERNAL,
                       "a step of %d rows, %d segments, %d pages for a batch of %d, "
                       "%d, %d",
                       rows, args->count, pages, b->max_rows, b->max_segs, b->max_pages);
    b->kern.rows = rows;
    b->kern.segs = args->count;
    b->kern.sparse_rows = 0;
    b->kern.sparse_segs = args->sparse;
    b->kern.scan_segs = args->scan;
    b->kern.mass_segs = 0;
    b->kern.write_rows = 0;
    b->kern.block = args->block;
    b->kern.page = args->page;
    b->kern.max_pages = args->recorded ? round_pages(b, pages) : pages;
    return RT_OK;
}

rt_status rt_batch_build(rt_batch *b, const rt_batch_args *args)
{
    RT_TRY(measure(b, args));
    fill_segments(b, args);
    const size_t table = (size_t)b->kern.segs * (size_t)b->kern.max_pages;
    return kern_write(b->arena, 0, b->memory, place(b, RT_BATCH_PAGE_TABLE) + table);
}

rt_status rt_batch_return(rt_batch *b)
{
    return kern_copy(b->outcome, 0, b->arena, 0, place(b, RT_BATCH_POS));
}

const int32_t *rt_batch_outcome(const rt_batch *b, int array)
{
    return (const int32_t *)kern_buf_ptr(b->outcome) + place(b, array);
}
