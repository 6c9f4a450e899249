// Streams: bounded in-order queues, each with a thread of its own that starts with the first operation.
//
// Operations of one stream run in order; an operation may depend on a position of another stream, which was reached
// by then or is waited for: that is how events, the legacy default stream and blocking streams are ordered. A
// position is a count of finished operations, so an event is just (stream, position). Everything here is under
// sim.lock, except that an operation runs without it. Dependencies always point at operations queued earlier, so no
// cycle can arise. After a sticky error, or when the context is destroyed, the threads let the remaining operations
// pass without running them, so every wait ends.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

void sim_event_release(sim_event_t *event) {
    if (--event->refs)
        return;
    if (event->stream)
        sim_stream_release(event->stream);
    sim_capture_event_drop(event);
    sim_ipc_event_end(event);
    free(event);
}

// noinline: gcc 12 otherwise mistakes two releases of two references for a use after free.
__attribute__((noinline)) void sim_stream_release(sim_stream_t *stream) {
    if (--stream->refs)
        return;
    pthread_cond_destroy(&stream->work);
    pthread_cond_destroy(&stream->finished);
    pthread_cond_destroy(&stream->space);
    free(stream->ring);
    free(stream);
}

CUresult sim_stream_new(sim_context_t *context, unsigned flags, int priority, sim_stream_t **out) {
    sim_stream_t *stream = calloc(1, sizeof *stream);
    if (!stream)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = sim.next_stream_id++;
    stream->refs = 1;
    stream->wanted = UINT64_MAX;
    pthread_cond_init(&stream->work, NULL);
    pthread_cond_init(&stream->finished, NULL);
    pthread_cond_init(&stream->space, NULL);
    stream->next = context->streams;
    stream->link = &context->streams;
    if (stream->next)
        stream->next->link = &stream->next;
    context->streams = stream;
    *out = stream;
    return CUDA_SUCCESS;
}

static void leave_context(sim_stream_t *stream) {
    if (!stream->link)
        return;
    *stream->link = stream->next;
    if (stream->next)
        stream->next->link = stream->link;
    stream->link = NULL;
    stream->next = NULL;
}

// A stream that still has work stays in its context's list until that is done: the legacy stream and whoever drains
// must see it.
void sim_stream_unlink(sim_stream_t *stream) {
    sim_capture_stream_gone(stream);
    if (stream->handle)
        sim_handle_remove(stream);
    stream->handle = false;
    if (stream->dying || stream->done == stream->enqueued)
        leave_context(stream);
    if (stream->dying)
        return;
    stream->dying = true;
    pthread_cond_broadcast(&stream->work);
    sim_stream_release(stream);
}

void sim_stream_wait(sim_stream_t *stream, uint64_t seq) {
    stream->refs++;
    while (stream->done < seq) {
        if (seq < stream->wanted)
            stream->wanted = seq;
        pthread_cond_wait(&stream->finished, &sim.lock);
    }
    sim_stream_release(stream);
}

static void wait_until_begun(sim_stream_t *stream, uint64_t seq) {
    while (stream->begun < seq)
        pthread_cond_wait(&stream->finished, &sim.lock);
}

// What stands behind it in its queue may begin.
static void begin(sim_stream_t *stream) {
    stream->begun++;
    if (sim.queues)
        pthread_cond_broadcast(&stream->finished);
}

static void finish(sim_stream_t *stream) {
    stream->done++;
    if (stream->done >= stream->wanted) {
        // Every waiter wakes, and those that want more say so again.
        stream->wanted = UINT64_MAX;
        pthread_cond_broadcast(&stream->finished);
    }
    if (stream->space_waiters)
        pthread_cond_broadcast(&stream->space);
}

static void await_dependencies(sim_op_t *op) {
    for (unsigned i = 0; i < op->ndependencies; i++) {
        sim_dependency_t *dependency = i ? &op->dependencies[i - 1] : &op->dependency;
        if (dependency->begun)
            wait_until_begun(dependency->stream, dependency->seq);
        else
            sim_stream_wait(dependency->stream, dependency->seq);
        sim_stream_release(dependency->stream);
    }
    free(op->dependencies);
    op->ndependencies = 0;
    op->dependencies = NULL;
}

static void *stream_thread(void *argument) {
    sim_stream_t *stream = argument;
    sim_context_t *context = stream->context;
    pthread_mutex_lock(&sim.lock);
    for (;;) {
        while (stream->done == stream->enqueued && !stream->dying) {
            stream->sleeping = true;
            pthread_cond_wait(&stream->work, &sim.lock);
            stream->sleeping = false;
        }
        if (stream->done == stream->enqueued)
            break;
        sim_op_t *op = &stream->ring[stream->done % SIM_QUEUE_DEPTH];
        await_dependencies(op);
        // What waits for a word, or for another process, holds up its queue while it waits; the nodes of a graph are in it, too.
        bool whole = op->kind == SIM_OP_GRAPH || op->kind == SIM_OP_WAIT_VALUE || op->kind == SIM_OP_BATCH ||
                     op->kind == SIM_OP_WAIT_IPC;
        if (!whole)
            begin(stream);
        pthread_mutex_unlock(&sim.lock);
        CUresult result = sim_run(stream, op);
        if (result != CUDA_SUCCESS)
            sim_context_fail(context, result);
        sim_op_discard(op);
        pthread_mutex_lock(&sim.lock);
        if (sim_op_has_event(op))
            sim_event_release(op->u.event);
        if (whole)
            begin(stream);
        finish(stream);
    }
    leave_context(stream);
    sim_stream_release(stream);
    pthread_mutex_unlock(&sim.lock);
    return NULL;
}

static CUresult start(sim_stream_t *stream) {
    stream->ring = malloc(SIM_QUEUE_DEPTH * sizeof *stream->ring);
    if (!stream->ring)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20); // host functions of the session run here
    stream->refs++;
    int failed = pthread_create(&thread, &attributes, stream_thread, stream);
    pthread_attr_destroy(&attributes);
    if (failed) {
        stream->refs--;
        free(stream->ring);
        stream->ring = NULL;
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    stream->started = true;
    return CUDA_SUCCESS;
}

static bool depend(sim_op_t *op, sim_dependency_t on) {
    if ((on.begun ? on.stream->begun : on.stream->done) >= on.seq)
        return true;
    sim_dependency_t *place = &op->dependency;
    if (op->ndependencies) {
        // Grown by doubling at 2, 4, 8 …: the legacy stream may depend on every blocking stream of the context.
        unsigned extra = op->ndependencies - 1;
        if (!(extra & (extra - 1)) || !extra) {
            sim_dependency_t *grown = realloc(op->dependencies, (extra ? extra * 2 : 1) * sizeof *grown);
            if (!grown)
                return false;
            op->dependencies = grown;
        }
        place = &op->dependencies[extra];
    }
    *place = on;
    on.stream->refs++;
    op->ndependencies++;
    return true;
}

bool sim_stream_depend(sim_op_t *op, sim_stream_t *stream, uint64_t seq) {
    return depend(op, (sim_dependency_t){.stream = stream, .seq = seq});
}

// Streams share the device's queues, by default eight of a context (CUDA_DEVICE_MAX_CONNECTIONS): an operation begins only after
// those that were put into its queue before it, of whatever stream. So one that waits for a host function holds up others.
static bool join_queue(sim_op_t *op, sim_stream_t *stream) {
    sim_dependency_t *last = &stream->context->queues[stream->id % sim.queues];
    if (last->stream && last->stream != stream && !depend(op, *last))
        return false;
    stream->refs++;
    if (last->stream)
        sim_stream_release(last->stream);
    *last = (sim_dependency_t){.stream = stream, .seq = stream->enqueued + 1, .begun = true};
    return true;
}

void sim_queues_end(sim_context_t *context) {
    for (size_t i = 0; i < SIM_MAX_QUEUES; i++) {
        if (context->queues[i].stream)
            sim_stream_release(context->queues[i].stream);
        context->queues[i].stream = NULL;
    }
}

static bool is_blocking(const sim_stream_t *stream) { return !(stream->flags & CU_STREAM_NON_BLOCKING); }

static void drop_dependencies(sim_op_t *op) {
    for (unsigned i = 0; i < op->ndependencies; i++)
        sim_stream_release(i ? op->dependencies[i - 1].stream : op->dependency.stream);
    free(op->dependencies);
    op->dependencies = NULL;
    op->ndependencies = 0;
}

CUresult sim_stream_push(sim_stream_t *stream, sim_op_t *op, uint64_t *seq) {
    sim_context_t *context = stream->context;
    CUresult result = CUDA_SUCCESS;
    bool taken = false;
    if (SIM_EXPECT_FALSE(sim_capturing()))
        result = sim_capture_push(stream, op, &taken);
    if (taken) {
        *seq = 0;
        drop_dependencies(op);
        sim_op_discard(op);
        if (sim_op_has_event(op))
            sim_event_release(op->u.event);
        return result;
    }
    if (SIM_EXPECT_FALSE(sim_graph_memory_missing(op))) {
        drop_dependencies(op);
        sim_op_discard(op);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!stream->started)
        result = start(stream);
    stream->refs++;
    while (result == CUDA_SUCCESS && stream->enqueued - stream->done == SIM_QUEUE_DEPTH) {
        stream->space_waiters++;
        pthread_cond_wait(&stream->space, &sim.lock);
        stream->space_waiters--;
    }
    if (result == CUDA_SUCCESS && !context->legacy) // another thread destroyed the context during this call
        result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (result == CUDA_SUCCESS && stream->dying)
        result = CUDA_ERROR_INVALID_HANDLE;
    bool ok = true;
    if (result != CUDA_SUCCESS) {
        ok = false;
    } else if (stream == context->legacy) {
        for (sim_stream_t *other = context->streams; ok && other; other = other->next)
            if (other != stream && is_blocking(other))
                ok = sim_stream_depend(op, other, other->enqueued);
    } else if (is_blocking(stream)) {
        ok = sim_stream_depend(op, context->legacy, context->legacy->enqueued);
    }
    if (ok)
        ok = sim_green_gate(op, stream);
    if (ok && op->kind == SIM_OP_GRAPH)
        ok = sim_program_await(op->u.program, stream, op);
    if (ok && sim.queues)
        ok = join_queue(op, stream);
    if (result == CUDA_SUCCESS && !ok)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS) {
        drop_dependencies(op);
        sim_op_discard(op);
        if (sim_op_has_event(op))
            sim_event_release(op->u.event);
        sim_stream_release(stream);
        return result;
    }
    sim_op_t *entry = &stream->ring[stream->enqueued % SIM_QUEUE_DEPTH];
    if (op->kind == SIM_OP_RECORD)
        op->u.number = sim_ipc_event_record(op->u.event);
    *entry = *op;
    // Small parameter blocks travel inside the operation, whose copy just moved.
    if (op->kind == SIM_OP_LAUNCH && op->u.launch.params == op->u.launch.inline_params)
        entry->u.launch.params = entry->u.launch.inline_params;
    *seq = ++stream->enqueued;
    if (op->kind == SIM_OP_RECORD)
        sim_event_place(op->u.event, stream, *seq);
    if (op->kind == SIM_OP_GRAPH)
        sim_program_place(op->u.program, stream, *seq);
    if (stream->sleeping)
        pthread_cond_signal(&stream->work);
    sim_stream_release(stream);
    return CUDA_SUCCESS;
}

bool sim_stream_busy(sim_stream_t *stream) {
    if (stream->done < stream->enqueued)
        return true;
    if (stream != stream->context->legacy)
        return false;
    for (sim_stream_t *other = stream->context->streams; other; other = other->next)
        if (is_blocking(other) && other->done < other->enqueued)
            return true;
    return false;
}

CUresult sim_stream_drain(sim_stream_t *stream) {
    uint64_t seq = stream->enqueued;
    if (stream == stream->context->legacy && sim_stream_busy(stream)) {
        // The legacy stream is done when the blocking streams' earlier work is: an empty operation carries that order.
        sim_op_t op = {.kind = SIM_OP_NOP};
        CUresult result = sim_stream_push(stream, &op, &seq);
        if (result != CUDA_SUCCESS)
            return result;
    }
    sim_stream_wait(stream, seq);
    return CUDA_SUCCESS;
}

void sim_context_drain(sim_context_t *context) {
    // Waiting lets other threads change the list, so each round takes the first stream that still has work from before.
    size_t count = 0;
    for (sim_stream_t *stream = context->streams; stream; stream = stream->next)
        count++;
    sim_dependency_t *targets = calloc(count ? count : 1, sizeof *targets);
    if (!targets) {
        for (sim_stream_t *stream = context->streams; stream; stream = context->streams) {
            while (stream && stream->done == stream->enqueued)
                stream = stream->next;
            if (!stream)
                return;
            sim_stream_wait(stream, stream->enqueued);
        }
        return;
    }
    count = 0;
    for (sim_stream_t *stream = context->streams; stream; stream = stream->next) {
        if (stream->done == stream->enqueued)
            continue;
        targets[count++] = (sim_dependency_t){.stream = stream, .seq = stream->enqueued};
        stream->refs++;
    }
    for (size_t i = 0; i < count; i++) {
        sim_stream_wait(targets[i].stream, targets[i].seq);
        sim_stream_release(targets[i].stream);
    }
    free(targets);
}

typedef struct per_thread {
    sim_context_t *context;
    unsigned long long generation; // of the context: a reset primary context is a new one
    sim_stream_t *stream;
    struct per_thread *next;
} per_thread_t;

static pthread_key_t per_thread_key;
static pthread_once_t per_thread_once = PTHREAD_ONCE_INIT;
static bool per_thread_usable;

static void per_thread_end(void *list) {
    pthread_mutex_lock(&sim.lock);
    for (per_thread_t *entry = list; entry;) {
        per_thread_t *next = entry->next;
        if (!entry->stream->dying)
            sim_stream_unlink(entry->stream);
        sim_stream_release(entry->stream);
        free(entry);
        entry = next;
    }
    pthread_mutex_unlock(&sim.lock);
}

static void per_thread_begin(void) { per_thread_usable = pthread_key_create(&per_thread_key, per_thread_end) == 0; }

static CUresult per_thread_stream(sim_context_t *context, sim_stream_t **out) {
    pthread_once(&per_thread_once, per_thread_begin);
    if (!per_thread_usable)
        return CUDA_ERROR_OPERATING_SYSTEM;
    per_thread_t *list = pthread_getspecific(per_thread_key);
    for (per_thread_t *entry = list; entry; entry = entry->next) {
        if (entry->context != context || entry->generation != context->id)
            continue;
        *out = entry->stream;
        return CUDA_SUCCESS;
    }
    per_thread_t *entry = calloc(1, sizeof *entry);
    if (!entry)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = sim_stream_new(context, CU_STREAM_DEFAULT, 0, &entry->stream);
    if (result != CUDA_SUCCESS) {
        free(entry);
        return result;
    }
    entry->stream->refs++;
    entry->context = context;
    entry->generation = context->id;
    entry->next = list;
    pthread_setspecific(per_thread_key, entry);
    *out = entry->stream;
    return CUDA_SUCCESS;
}

static _Thread_local bool default_per_thread;

bool sim_default_per_thread(bool own) {
    bool before = default_per_thread;
    default_per_thread = own;
    return before;
}

CUresult sim_stream_resolve(sim_context_t *context, CUstream handle, sim_stream_t **stream) {
    uintptr_t value = !handle && default_per_thread ? (uintptr_t)CU_STREAM_PER_THREAD : (uintptr_t)handle;
    if (value <= 1) {
        *stream = context->legacy;
        return context->legacy ? CUDA_SUCCESS
                               : CUDA_ERROR_CONTEXT_IS_DESTROYED; // another thread may just have destroyed it
    }
    if (!context->active)
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (value == 2) // a green context has none (580.159.04, measured)
        return sim_home(context) == context ? per_thread_stream(context, stream) : CUDA_ERROR_INVALID_HANDLE;
    if (!sim_handle_is(handle, SIM_STREAM))
        return CUDA_ERROR_INVALID_HANDLE;
    *stream = (sim_stream_t *)(void *)handle;
    return (*stream)->context->active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult sim_lend(CUstream handle, sim_context_t **context) {
    CUresult result = CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&sim.lock);
    if ((uintptr_t)handle > 2 && sim_handle_is(handle, SIM_STREAM)) {
        *context = ((sim_stream_t *)(void *)handle)->context;
        result = (*context)->active ? sim_context_error(*context) : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult sim_submit(sim_context_t *context, CUstream handle, sim_op_t *op, bool own_context, sim_wait_t wait) {
    pthread_mutex_lock(&sim.lock);
    sim_stream_t *stream;
    uint64_t seq = 0;
    CUresult result = sim_stream_resolve(context, handle, &stream);
    if (result == CUDA_SUCCESS && own_context && sim_home(stream->context) != sim_home(context))
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS && wait == SIM_WAIT)
        result = sim_capture_touch(stream);
    if (result == CUDA_SUCCESS) {
        stream->refs++;
        result = sim_stream_push(stream, op, &seq);
        if (result == CUDA_SUCCESS && wait != SIM_GO_ON && !stream->capture) {
            sim_stream_wait(stream, seq);
            result = sim_context_error(stream->context);
        }
        sim_stream_release(stream);
    } else {
        sim_op_discard(op);
        if (sim_op_has_event(op))
            sim_event_release(op->u.event);
    }
    pthread_mutex_unlock(&sim.lock);
    if (wait == SIM_WAIT)
        sim_print_show();
    return result;
}
