// Executes one operation of a stream, in that stream's thread, with no lock held on entry.
//
// Memory is touched only under sim.map_lock (for reading), address by address as the map allows; an address that is
// not there any more ends the operation with CUDA_ERROR_ILLEGAL_ADDRESS, which the caller makes the context's sticky
// error. Plain host pointers are followed for their whole length, as the real driver does: a wrong one is meant to
// crash a test.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static CUresult side_span(const sim_side_t *side, unsigned peers, uint64_t offset, bool write, sim_span_t *span) {
    uint64_t address = side->address + offset;
    if (!side->mapped) {
        *span = (sim_span_t){(unsigned char *)(uintptr_t)address, UINT64_MAX};
        return CUDA_SUCCESS;
    }
    bool reached = sim_map_span(address, side->caller, peers, write, span) == CUDA_SUCCESS &&
                   sim_map_span(address, side->device, peers, write, span) == CUDA_SUCCESS;
    return reached ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

// A row at a time, in pieces no larger than either side's mapping.
static CUresult copy_row(const sim_copy_t *copy, uint64_t dst_offset, uint64_t src_offset) {
    uint64_t moved = 0;
    while (moved < copy->width) {
        sim_span_t to, from;
        // Copies of cuMemAlloc's memory need no peer access: the driver stages them where it must.
        if (side_span(&copy->dst, ~0u, dst_offset + moved, true, &to) != CUDA_SUCCESS)
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        if (side_span(&copy->src, ~0u, src_offset + moved, false, &from) != CUDA_SUCCESS)
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        uint64_t piece = copy->width - moved;
        if (piece > to.bytes)
            piece = to.bytes;
        if (piece > from.bytes)
            piece = from.bytes;
        memmove(to.host, from.host, piece);
        moved += piece;
    }
    return CUDA_SUCCESS;
}

static CUresult run_copy(const sim_copy_t *copy) {
    CUresult result = CUDA_SUCCESS;
    for (uint64_t z = 0; z < copy->depth; z++) {
        for (uint64_t y = 0; y < copy->height && result == CUDA_SUCCESS; y++) {
            pthread_rwlock_rdlock(&sim.map_lock);
            result =
                copy_row(copy, z * copy->dst.slice + y * copy->dst.pitch, z * copy->src.slice + y * copy->src.pitch);
            pthread_rwlock_unlock(&sim.map_lock);
        }
    }
    return result;
}

static void fill(unsigned char *to, uint64_t bytes, uint32_t value, uint32_t element) {
    if (element == 1) {
        memset(to, (int)(value & 0xff), bytes);
        return;
    }
    unsigned char pattern[4];
    memcpy(pattern, &value, 4);
    uint64_t filled = bytes < element ? bytes : element;
    memcpy(to, pattern, filled);
    for (; filled < bytes;) { // doubles what is there; the pattern's period divides every length copied
        uint64_t piece = filled < bytes - filled ? filled : bytes - filled;
        memcpy(to + filled, to, piece);
        filled += piece;
    }
}

static CUresult run_set(const sim_set_t *set) {
    for (uint64_t y = 0; y < set->height; y++) {
        uint64_t written = 0;
        pthread_rwlock_rdlock(&sim.map_lock);
        while (written < set->width) {
            sim_span_t to;
            if (side_span(&set->dst, ~0u, y * set->dst.pitch + written, true, &to) != CUDA_SUCCESS) {
                pthread_rwlock_unlock(&sim.map_lock);
                return CUDA_ERROR_ILLEGAL_ADDRESS;
            }
            uint64_t piece = set->width - written < to.bytes ? set->width - written : to.bytes;
            fill(to.host, piece, set->value, set->element);
            written += piece;
        }
        pthread_rwlock_unlock(&sim.map_lock);
    }
    return CUDA_SUCCESS;
}

static CUresult write_value(const sim_stream_t *stream, const sim_op_t *op) {
    CUresult result = CUDA_SUCCESS;
    sim_span_t span;
    pthread_rwlock_rdlock(&sim.map_lock);
    if (sim_map_span(op->u.value.address, stream->context->device, ~0u, true, &span) != CUDA_SUCCESS ||
        span.bytes < op->u.value.bytes)
        result = CUDA_ERROR_ILLEGAL_ADDRESS;
    else if (op->u.value.bytes == 4) // release: whoever polls this word sees all that the stream wrote before
        __atomic_store_n((uint32_t *)(void *)span.host, (uint32_t)op->u.value.value, __ATOMIC_RELEASE);
    else
        __atomic_store_n((uint64_t *)(void *)span.host, op->u.value.value, __ATOMIC_RELEASE);
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static bool satisfied(uint64_t seen, const sim_op_t *op) {
    uint64_t wanted = op->u.value.value;
    bool wide = op->u.value.bytes == 8;
    switch (op->u.value.flags & 3) {
    case CU_STREAM_WAIT_VALUE_GEQ:
        return wide ? (int64_t)(seen - wanted) >= 0 : (int32_t)(uint32_t)(seen - wanted) >= 0;
    case CU_STREAM_WAIT_VALUE_EQ:
        return seen == wanted;
    case CU_STREAM_WAIT_VALUE_AND:
        return (seen & wanted) != 0;
    default:
        return (wide ? ~(seen | wanted) : (uint64_t)(uint32_t)~(uint32_t)(seen | wanted)) != 0;
    }
}

static CUresult wait_value(const sim_stream_t *stream, const sim_op_t *op) {
    long pause_ns = 1000;
    for (;;) {
        uint64_t seen = 0;
        sim_span_t span;
        CUresult result = CUDA_SUCCESS;
        pthread_rwlock_rdlock(&sim.map_lock);
        if (sim_map_span(op->u.value.address, stream->context->device, ~0u, false, &span) != CUDA_SUCCESS ||
            span.bytes < op->u.value.bytes)
            result = CUDA_ERROR_ILLEGAL_ADDRESS;
        else if (op->u.value.bytes == 4) // acquire: pairs with the release of the stream or host that wrote the word
            seen = __atomic_load_n((uint32_t *)(void *)span.host, __ATOMIC_ACQUIRE);
        else
            seen = __atomic_load_n((uint64_t *)(void *)span.host, __ATOMIC_ACQUIRE);
        pthread_rwlock_unlock(&sim.map_lock);
        if (result != CUDA_SUCCESS)
            return result;
        if (satisfied(seen, op))
            return CUDA_SUCCESS;
        if (atomic_load(&stream->context->killed) || sim_context_error(stream->context))
            return CUDA_SUCCESS;
        // Anybody may write that word and nobody tells, so it is looked at, ever more seldom, down to each 200 us.
        nanosleep(&(struct timespec){0, pause_ns}, NULL);
        if (pause_ns < 200000)
            pause_ns += pause_ns / 2;
    }
}

static void record(sim_stream_t *stream, const sim_op_t *op) {
    uint64_t now = sim_now_ns();
    pthread_mutex_lock(&sim.lock);
    sim_event_t *event = op->kind == SIM_OP_RECORD ? op->u.event : sim_event_of(op->u.event_handle);
    if (event && event->stream == stream && event->seq == stream->done + 1) { // not recorded again in the meantime
        event->recorded_ns = now;
        event->recorded_seq = event->seq;
    }
    if (event && op->kind == SIM_OP_RECORD_NODE) // other processes see it when it is reached
        sim_ipc_event_reach(event, sim_ipc_event_record(event));
    pthread_mutex_unlock(&sim.lock);
}

static CUresult run_free(uint64_t address) {
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(address);
    CUresult result = CUDA_ERROR_ILLEGAL_ADDRESS;
    if (range && range->base == address && range->free_queued) {
        sim_range_release(range);
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static CUresult run_batch(sim_stream_t *stream, const sim_op_t *batch) {
    CUresult result = CUDA_SUCCESS;
    for (unsigned i = 0; i < batch->u.batch.count && result == CUDA_SUCCESS; i++) {
        const CUstreamBatchMemOpParams *p = &batch->u.batch.list[i];
        sim_op_t op = {.kind = SIM_OP_NOP};
        bool wait, has_value = sim_batch_value(p, &op, &wait);
        if (has_value)
            result = wait ? wait_value(stream, &op) : write_value(stream, &op);
    }
    return result;
}

CUresult sim_run(sim_stream_t *stream, sim_op_t *op) {
    sim_context_t *context = stream->context;
    bool dead = sim_context_error(context) != CUDA_SUCCESS || atomic_load(&context->killed);
    if (op->kind == SIM_OP_CALLBACK) { // unlike a host function, a callback is told about the error
        sim_in_callback(true);
        op->u.callback.call(op->u.callback.stream, sim_context_error(context), op->u.callback.data);
        sim_in_callback(false);
        return CUDA_SUCCESS;
    }
    if (op->kind == SIM_OP_RECORD) // of an error other processes are not told
        sim_ipc_event_reach(op->u.event, op->u.number);
    if (dead)
        return CUDA_SUCCESS;
    switch (op->kind) {
    case SIM_OP_NOP:
    case SIM_OP_CALLBACK:
    case SIM_OP_WAIT_NODE: // its launch has waited
        return CUDA_SUCCESS;
    case SIM_OP_BATCH:
        return run_batch(stream, op);
    case SIM_OP_RECORD:
    case SIM_OP_RECORD_NODE:
        record(stream, op);
        return CUDA_SUCCESS;
    case SIM_OP_WAIT_IPC:
        sim_ipc_event_await(stream, op->u.event, op->u.number);
        return CUDA_SUCCESS;
    case SIM_OP_LAUNCH:
        return sim_body_run(context, &op->u.launch);
    case SIM_OP_COPY:
        return run_copy(&op->u.copy);
    case SIM_OP_SET:
        return run_set(&op->u.set);
    case SIM_OP_HOST_FUNCTION:
        sim_in_callback(true);
        op->u.host_function.call(op->u.host_function.data);
        sim_in_callback(false);
        return CUDA_SUCCESS;
    case SIM_OP_WRITE_VALUE:
        return write_value(stream, op);
    case SIM_OP_WAIT_VALUE:
        return wait_value(stream, op);
    case SIM_OP_FREE:
        return run_free(op->u.free);
    case SIM_OP_GRAPH_ALLOC:
    case SIM_OP_GRAPH_FREE:
        sim_graph_memory_run(op);
        return CUDA_SUCCESS;
    case SIM_OP_GRAPH:
        return sim_program_run(stream, op->u.program);
    }
    return CUDA_SUCCESS;
}

void sim_op_discard(sim_op_t *op) {
    if (op->kind == SIM_OP_LAUNCH && op->u.launch.params != op->u.launch.inline_params)
        free(op->u.launch.params);
    if (op->kind == SIM_OP_COPY)
        free(op->u.copy.staging);
    if (op->kind == SIM_OP_GRAPH)
        sim_program_release(op->u.program);
    if (op->kind == SIM_OP_BATCH)
        free(op->u.batch.list);
    sim_graph_op_discarded(op);
}
