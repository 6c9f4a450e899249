/*
 * Copies of one dimension, and the four ways in which bytes travel: up and down, in frames or as transfers, and across.
 *
 * Any thread; owns nothing. When a call returns follows CUDA's table of synchronisation behaviour: a copy up returns
 * when its source may be changed (pageable) or at once (pinned, asynchronous form); a copy down returns when the bytes
 * are there, except in the asynchronous form into pinned memory. What the worker sends can only land in the destination
 * named here.
 */
#include "tpc_copy.h"
#include "tpg_cuda_messages.h"
#include "tpg_cuda_send.h"

bool tpc_is_pinned(const void *memory, size_t size) {
    struct tpc_range range;
    uint64_t address = (uint64_t)(uintptr_t)memory;
    return tpc_range_at(address, &range) && range.where == TPC_PINNED && size <= range.size - (address - range.start);
}

CUresult tpc_copy_wait(const char *name, CUstream stream) {
    TP_TELL(tpc_before_wait);
    if (tpc_wait_marked(name, stream)) {
        return CUDA_SUCCESS;
    }
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_stream_wait(name, (uint64_t)(uintptr_t)stream, &reply));
    tpc_stream_quiet(stream, &reply);
    return CUDA_SUCCESS;
}

/* ---- shared memory: the copy engine reaches the program's pinned memory itself ---- */

#define READ_AT_ONCE 65536u /* bytes; what is smaller may be (580.159.04: 16384, and not 65536) */

bool tpc_copy_shared(const char *name, const struct tpg_area *area, const void *host, uint64_t host_pitch, bool up,
                     CUstream stream, bool sync, CUresult *result) {
    uint64_t offset = tpc_host_offset(host, host_pitch * (area->height - 1) + area->width);
    if (!offset) {
        return false;
    }
    if (up && sync &&
        (area->width * area->height < READ_AT_ONCE || atomic_load_explicit(&tpc_late_reasons, memory_order_acquire))) {
        /* The driver reads small sources at the call where only the order of blocking and legacy streams stands in front of the
         * copy, even in the copy engine's form; its own synchronous form waits before that: for host functions, and for
         * copies into the source. Free when nothing was sent since the last wait. */
        *result = tpc_copy_wait(name, stream);
        if (*result != CUDA_SUCCESS) {
            return true;
        }
    }
    tpc_twins_push();
    if (up) {
        struct tpg_arena_copy_in_in in = {
            .area = *area, .stream = (uint64_t)(uintptr_t)stream, .offset = offset, .host_pitch = host_pitch};
        *result = tpc_post_arena_copy_in(name, &in);
    } else {
        struct tpg_arena_copy_out_in in = {
            .area = *area, .stream = (uint64_t)(uintptr_t)stream, .offset = offset, .host_pitch = host_pitch};
        *result = tpc_post_arena_copy_out(name, &in);
    }
    if (sync && *result == CUDA_SUCCESS) {
        *result = tpc_copy_wait(name, stream);
    }
    return true;
}

/* ---- up ---- */

CUresult tpc_pageable_settle(const char *name, const void *source, size_t span, CUstream stream, bool sync) {
    if (sync && atomic_load_explicit(&tpc_late_reasons, memory_order_acquire)) {
        TPC_TRY(tpc_copy_wait(name, stream));
    }
    /* Into pageable memory it is a graph that copies without waiting. */
    bool lost =
        tp_download_pending(tpc_conn, source, span) && tp_transfers_touching_wait(tpc_conn, source, span) != TP_OK;
    return lost ? tpc_lost() : CUDA_SUCCESS;
}

static CUresult upload(const char *name, const struct tpg_area *area, const void *source, size_t size, CUstream stream,
                       bool sync, bool may_go_on) {
    if (tp_data_ready(tpc_conn) != TP_OK) {
        return tpc_lost();
    }
    struct tpg_copy_in_bulk_in in = {.area = *area, .stream = (uint64_t)(uintptr_t)stream, .ordered = sync};
    TPC_TRY(tpc_post_copy_in_bulk(name, &in, source, size));
    if (!may_go_on && tp_upload_wait(tpc_conn, in.transfer) != TP_OK) {
        return tpc_lost();
    }
    if (tpc_strict) {
        return tpc_copy_wait(name, stream);
    }
    return tpc_posted();
}

CUresult tpc_copy_up(const char *name, const struct tpg_area *area, const void *source, CUstream stream, bool sync) {
    size_t size = area->width * area->height;
    if (!size) {
        return CUDA_SUCCESS;
    }
    bool pinned = tpc_is_pinned(source, size);
    bool completes = pinned;
    CUresult result;
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        CUgraph graph;
        result = tpc_capture_copy(name, stream, source, size, sync, &graph);
        if (result != CUDA_SUCCESS || graph) {
            return graph ? tpc_capture_host(name, graph, area, source, area->width, true, stream) : result;
        }
        completes = true; /* nothing that comes later can be put behind it in a stream that captures */
    }
    if (pinned && tpc_copy_shared(name, area, source, area->width, true, stream, sync, &result)) {
        return result;
    }
    if (pinned && tpc_late_needed(source, size)) {
        const struct tpc_host_side side = tpc_packed_side(source, size);
        tpc_twins_push();
        result = tpc_copy_late(name, area, &side, stream);
        return result == CUDA_SUCCESS && sync ? tpc_copy_wait(name, stream) : result;
    }
    if (!pinned) {
        TPC_TRY(tpc_pageable_settle(name, source, size, stream, sync));
    }
    if (size <= TP_INLINE_MAX) {
        TPC_TRY(tpc_reach_hidden(source, size));
    }
    tpc_twins_push(); /* an earlier copy may go to a twin: keep the order */
    if (size <= TP_INLINE_MAX) {
        struct tpg_copy_in_in in = {
            .area = *area, .stream = (uint64_t)(uintptr_t)stream, .ordered = sync, .data = source, .data_size = size};
        result = tpc_post_copy_in(name, &in);
    } else {
        result = upload(name, area, source, size, stream, sync, pinned && !sync);
    }
    /* From pinned memory the synchronous form promises completion, from pageable memory only that the source is read; but
     * what is copied into host memory may be looked at, and other contexts would not wait for this one by themselves. */
    bool wait = sync && (completes || tpc_is_mapped_host(area->address) || tpc_several_contexts());
    return result == CUDA_SUCCESS && wait ? tpc_copy_wait(name, stream) : result;
}

/* ---- down ---- */

/* A few bytes that the GPU writes beside the word that says so; false when the ordinary way must be gone. */
static bool download_marked(const char *name, void *destination, const struct tpg_area *area, CUstream stream) {
    struct tp_done done;
    if (area->height != 1 || area->width > TP_LANDING || !tpc_may_mark() || !tp_done_begin(tpc_conn, &done)) {
        return false;
    }
    struct tpg_copy_out_mark_in in = {.source = area->address,
                                      .size = area->width,
                                      .stream = (uint64_t)(uintptr_t)stream,
                                      .word = done.word,
                                      .value = done.value};
    uint64_t before = tp_frames(tpc_conn);
    if (tpc_post_copy_out_mark(name, &in) != CUDA_SUCCESS || !tpc_marked(name, stream, &done, before)) {
        return false;
    }
    memcpy(destination, done.landing, area->width);
    return true;
}

struct taken {
    void *destination;
    size_t size;
    bool whole;
};

static void take_bytes(void *what, const unsigned char *body, size_t size) {
    struct taken *taken = what;
    struct tpg_copy_out_out out = {0};
    struct tp_cursor c = tp_cursor_make((void *)(uintptr_t)body, size);
    tpg_get_copy_out_out(&c, &out);
    taken->whole = !c.bad && out.data_size == taken->size;
    if (taken->whole) {
        memcpy(taken->destination, out.data, out.data_size);
    }
}

static CUresult download_inline(const char *name, void *destination, const struct tpg_area *area, CUstream stream) {
    if (download_marked(name, destination, area, stream)) {
        return CUDA_SUCCESS;
    }
    struct tpg_copy_out_in in = {.area = *area, .stream = (uint64_t)(uintptr_t)stream};
    size_t frame_size = tpg_size_copy_out_in(&in);
    unsigned char *body = tpc_reserve(TPG_OP_copy_out, frame_size);
    if (!body) {
        return tpc_lost();
    }
    struct tp_cursor c = tp_cursor_make(body, frame_size);
    tpg_put_copy_out_in(&c, &in);
    struct taken taken = {.destination = destination, .size = area->width * area->height};
    tp_take_reply(take_bytes, &taken);
    struct tp_reply reply;
    CUresult result = tpc_call(name, &reply);
    if (result == CUDA_SUCCESS && !taken.whole) {
        result = tpc_bad_reply(&reply);
    }
    if (result == CUDA_SUCCESS) {
        tpc_stream_quiet(stream, &reply);
    }
    tp_reply_free(&reply);
    return result;
}

static CUresult download_bulk(const char *name, void *destination, const struct tpg_area *area, CUstream stream) {
    if (tp_data_ready(tpc_conn) != TP_OK) {
        return tpc_lost();
    }
    struct tpg_copy_out_bulk_in in = {.area = *area, .stream = (uint64_t)(uintptr_t)stream};
    struct tp_reply reply;
    CUresult result = tpc_call_copy_out_bulk(name, &in, destination, area->width * area->height, &reply);
    if (result == CUDA_SUCCESS) {
        tpc_stream_quiet(stream, &reply);
    } else if (result != TPC_LOST_ERROR) {
        tp_download_cancel(tpc_conn, in.transfer);
    }
    tp_reply_free(&reply);
    return result;
}

/* The session could not make a download that was posted: its error comes as a notice, its bytes never. */
bool tpc_on_download_ended(const struct tpg_download_ended_in *in) {
    tp_download_cancel(tpc_conn, in->transfer);
    return true;
}

/* The bytes of a small one. */
bool tpc_on_host_write(const struct tpg_host_write_in *in) {
    return tp_download_written(tpc_conn, in->transfer, in->data, in->data_size);
}

/* Transfers travel apart, so a later download could land before an earlier one into the same memory: it waits for that one. */
static bool landed_before(const void *destination, size_t size) {
    return TP_LIKELY(!tp_download_pending(tpc_conn, destination, size)) ||
           tp_transfers_touching_wait(tpc_conn, destination, size) == TP_OK;
}

CUresult tpc_copy_down_later(const char *name, void *destination, const struct tpg_area *area, CUstream stream) {
    size_t size = area->width * area->height;
    if (!landed_before(destination, size)) {
        return tpc_lost();
    }
    if (size > TP_INLINE_MAX && tp_data_ready(tpc_conn) != TP_OK) {
        return tpc_lost();
    }
    struct tpg_copy_out_post_in in = {.area = *area, .stream = (uint64_t)(uintptr_t)stream};
    return tpc_post_copy_out_post(name, &in, destination, size);
}

CUresult tpc_copy_down(const char *name, void *destination, const struct tpg_area *area, CUstream stream, bool sync) {
    size_t size = area->width * area->height;
    if (!size) {
        return CUDA_SUCCESS;
    }
    bool pinned = tpc_is_pinned(destination, size);
    CUresult result;
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        CUgraph graph;
        result = tpc_capture_copy(name, stream, destination, size, sync, &graph);
        if (result != CUDA_SUCCESS || graph) {
            return graph ? tpc_capture_host(name, graph, area, destination, area->width, false, stream) : result;
        }
    }
    if (pinned && tpc_copy_shared(name, area, destination, area->width, false, stream, sync, &result)) {
        return result;
    }
    tpc_twins_push();
    if (!sync && pinned) {
        return tpc_copy_down_later(name, destination, area, stream);
    }
    if (!landed_before(destination, size)) {
        return tpc_lost();
    }
    return size <= TP_INLINE_MAX ? download_inline(name, destination, area, stream)
                                 : download_bulk(name, destination, area, stream);
}

/* ---- across ---- */

/* The context that memory belongs to, if it can be used and is not the current one. */
static CUcontext elsewhere(uint64_t address) {
    struct tpc_range range;
    const struct tpc_context *current = tpc_current(), *context = NULL;
    if (tpc_several_contexts() && tpc_range_at(address, &range) && range.where == TPC_DEVICE_MEMORY) {
        context = tpc_range_context(&range);
    }
    bool other = context && context != current && !atomic_load_explicit(&context->error, memory_order_relaxed);
    return other ? (CUcontext)(uintptr_t)context->handle : NULL;
}

CUresult tpc_copy_settle(const char *name, uint64_t destination, uint64_t source, CUstream stream) {
    if (tpc_is_mapped_host(source)) {
        TPC_TRY(tpc_copy_wait(name, stream));
    }
    CUcontext contexts[] = {elsewhere(destination), elsewhere(source), NULL};
    CUresult result = CUDA_SUCCESS;
    if (!contexts[0] && !contexts[1]) {
        return CUDA_SUCCESS;
    }
    for (size_t i = 0; i < 3 && result == CUDA_SUCCESS; i++) {
        if ((i == 2 || contexts[i]) && !(i == 1 && contexts[1] == contexts[0])) {
            result = tpc_cuCtxSynchronize_v2(contexts[i]); /* NULL is the current one */
        }
    }
    return result;
}

CUresult tpc_copy_done(const char *name, uint64_t destination, uint64_t source, CUstream stream, CUresult result) {
    bool wait =
        tpc_is_mapped_host(destination) || tpc_is_mapped_host(source) || elsewhere(destination) || elsewhere(source);
    return result == CUDA_SUCCESS && wait ? tpc_copy_wait(name, stream) : result;
}

CUresult tpc_copy_here(const char *name, CUstream stream, bool sync) {
    CUresult result = sync ? CUDA_SUCCESS : tpc_capture_unserved(name, stream, "one place of host memory to another");
    return result ? result : tpc_copy_wait(name, stream);
}

CUresult tpc_copy_rows(const char *name, const struct tpg_rows *rows, CUstream stream) {
    struct tpg_copy_device_in in = {.rows = *rows, .stream = (uint64_t)(uintptr_t)stream};
    tpc_twins_push();
    return tpc_post_copy_device(name, &in);
}

CUresult tpc_copy_across(const char *name, uint64_t destination, uint64_t source, uint64_t size, CUstream stream) {
    return tpc_copy_rows(name, &(struct tpg_rows){destination, size, source, size, size, 1}, stream);
}

/* ---- the API ---- */

#define BEGIN(size)                                                                                                    \
    TPC_CONTEXT(context);                                                                                              \
    TPC_CHECK_HANDLE(STREAM, stream, true);                                                                            \
    if (!(size)) {                                                                                                     \
        return CUDA_SUCCESS;                                                                                           \
    }

static CUresult copy(const char *name, struct tpc_place to, struct tpc_place from, uint64_t size, CUstream stream,
                     bool sync) {
    struct tpg_area area = tpc_line(to.device ? to.address : from.address, size);
    void *host_to = (void *)(uintptr_t)to.address;
    const void *host_from = (const void *)(uintptr_t)from.address;
    CUresult result;
    if (to.device && from.device) {
        result = sync ? tpc_copy_settle(name, to.address, from.address, stream) : CUDA_SUCCESS;
        result = result ? result : tpc_copy_across(name, to.address, from.address, size, stream);
        return sync ? tpc_copy_done(name, to.address, from.address, stream, result) : result;
    }
    if (to.device) {
        return tpc_copy_up(name, &area, host_from, stream, sync);
    }
    if (from.device) {
        return tpc_copy_down(name, host_to, &area, stream, sync);
    }
    result = tpc_copy_here(name, stream, sync);
    if (result == CUDA_SUCCESS) {
        memmove(host_to, host_from, size);
    }
    return result;
}

typedef CUresult placing(uint64_t address, uint64_t size, struct tpc_place *out);

static CUresult place_and_copy(const char *name, placing *to_is, uint64_t to, placing *from_is, uint64_t from,
                               uint64_t size, CUstream stream, bool sync) {
    BEGIN(size);
    struct tpc_place to_place, from_place;
    CUresult result = to_is(to, size, &to_place);
    result = result ? result : from_is(from, size, &from_place);
    if (sync && !result && to_is == tpc_place_host && to_place.read_only) { /* 580.159.04, asked */
        return CUDA_ERROR_INVALID_VALUE;
    }
    return result ? result : copy(name, to_place, from_place, size, stream, sync);
}

CUresult tpc_memcpy_up(const char *name, CUdeviceptr to, const void *from, size_t size, CUstream stream, bool sync) {
    return place_and_copy(name, tpc_place_device, to, tpc_place_host, (uintptr_t)from, size, stream, sync);
}

CUresult tpc_memcpy_down(const char *name, void *to, CUdeviceptr from, size_t size, CUstream stream, bool sync) {
    return place_and_copy(name, tpc_place_host, (uintptr_t)to, tpc_place_device, from, size, stream, sync);
}

CUresult tpc_memcpy_across(const char *name, CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream,
                           bool sync) {
    return place_and_copy(name, tpc_place_device, to, tpc_place_device, from, size, stream, sync);
}

CUresult tpc_memcpy_anywhere(const char *name, CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream,
                             bool sync) {
    return place_and_copy(name, tpc_place_either, to, tpc_place_either, from, size, stream, sync);
}
