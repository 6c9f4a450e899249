/*
 * One line for each API call and each frame, and their records for a timeline: whether, and the lines.
 *
 * Any thread, also in a child after fork: there is no lock, a line is put together on the caller's stack.
 */
#include "conn_internal.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <tp_trace.h>
#include <unistd.h>

_Atomic int tp_trace_state = TP_TRACE_UNKNOWN;
static _Atomic int asking; /* process that reads the environment; not that of a parent that forked meanwhile */

static _Atomic bool recorded; /* in the file of TF_TRACE_PATH */

static bool logged(void) { return atomic_load_explicit(&tp_log_threshold, memory_order_relaxed) <= TP_TRACE; }

void tpc_trace_learn(void) {
    atomic_store(&recorded, tpc_records_wanted());
    atomic_store(&tp_trace_state, logged() || atomic_load(&recorded) ? TP_TRACE_ON : TP_TRACE_OFF);
}

bool tp_trace_on(void) {
    int state = atomic_load_explicit(&tp_trace_state, memory_order_acquire);
    while (TP_UNLIKELY(state == TP_TRACE_UNKNOWN)) {
        int me = (int)getpid(), who = atomic_load(&asking);
        if (who != me && atomic_compare_exchange_strong(&asking, &who, me)) {
            tp_log_setup("client");
            tpc_trace_learn();
        } else {
            sched_yield();
        }
        state = atomic_load_explicit(&tp_trace_state, memory_order_acquire);
    }
    return state == TP_TRACE_ON;
}

uint64_t tp_trace_begin(void) { return tp_now_ns(); }

void tp_trace_end(const struct tp_tables *tables, const struct tp_call *call, const void *const *values,
                  const void *result, bool succeeded, uint64_t begin) {
    int saved = errno;
    uint64_t took = tp_now_ns() - begin;
    struct tp_trace_text t;
    tp_trace_show(&t, tables, call, values, result, succeeded);
    const char *name = tables->names + call->name;
    const unsigned thread = tpc_caller_self()->thread.number;
    if (logged()) {
        tp_log_write(TP_TRACE, "%s%s, thread %u, %llu.%03u us", name, t.at, thread, (unsigned long long)(took / 1000),
                     (unsigned)(took % 1000));
    }
    if (atomic_load_explicit(&recorded, memory_order_relaxed)) {
        char json[2 * TP_TRACE_TEXT];
        tpc_records_write("{\"call\": \"%s\", \"text\": \"%s\", \"thread\": %u, \"begin\": %llu, \"ns\": %llu}\n", name,
                          tpc_json_text(json, sizeof json, t.at), thread, (unsigned long long)begin,
                          (unsigned long long)took);
    }
    errno = saved;
}

/* ---- frames ---- */

void tpc_trace_frame(const struct tp_frame *frame, uint64_t number, const struct tp_reply *reply, uint64_t begin,
                     uint64_t finish) {
    const uint64_t ns = finish - begin;
    char end[96] = "";
    if (logged()) {
        if (reply) {
            snprintf(end, sizeof end, ", answered with %d and %u bytes after %llu.%03u us", (int)reply->result,
                     reply->size, (unsigned long long)(ns / 1000), (unsigned)(ns % 1000));
        } else if (frame->flags & TP_FRAME_CALL) {
            snprintf(end, sizeof end, ", not answered: the connection is lost");
        }
        tp_log_write(TP_TRACE, "frame %llu: %s, %u bytes, thread %u%s", (unsigned long long)number,
                     tp_op_name(frame->op), frame->size, frame->thread, end);
    }
    if (atomic_load_explicit(&recorded, memory_order_relaxed)) {
        if (reply) {
            snprintf(end, sizeof end, ", \"ns\": %llu, \"result\": %d, \"answer\": %u", (unsigned long long)ns,
                     (int)reply->result, reply->size);
        } else {
            end[0] = 0;
        }
        tpc_records_write("{\"frame\": %llu, \"op\": \"%s\", \"bytes\": %u, \"thread\": %u, \"end\": %llu%s}\n",
                          (unsigned long long)number, tp_op_name(frame->op), frame->size, frame->thread,
                          (unsigned long long)finish, end);
    }
}
