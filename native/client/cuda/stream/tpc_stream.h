/*
 * Streams and order: what the other families ask of streams, events, captures and host functions.
 *
 * Any thread. The state of captures is known here exactly, because every capture begins and ends in this process and every
 * post waits for its result while there is one; the worker is asked only for what it alone knows. Nothing here is read from
 * memory that others can write.
 */
#ifndef TPC_STREAM_H
#define TPC_STREAM_H

#include "tpc.h"

/* ---- stream.c ---- */
/* A stream that the program made lends its context to a thread that has none, for this call (580.159.04, measured). Nothing was done by a
 * call that has missed one. False where there is one, or none to lend. */
bool tpc_lend(CUstream stream);
void tpc_lent(void); /* after it was true */
#define TPC_LENT(lend, call)                                                                                           \
    ({                                                                                                                 \
        CUresult lent_ = (call);                                                                                       \
        if (TP_UNLIKELY(lent_ == CUDA_ERROR_INVALID_CONTEXT) && (lend)) {                                              \
            lent_ = (call);                                                                                            \
            tpc_lent();                                                                                                \
        }                                                                                                              \
        lent_;                                                                                                         \
    })
/* After a post has failed on the worker (tpc_counts.failures) the next wait must ask it, even where the client believes all is done.
 * What a call answered that may report it, and the date before: with success nothing was left to report, so waits are short
 * again. After an error the next call has to say so. */
void tpc_waited(const struct tpc_date *asked, CUresult result);
/* CUDA_ERROR_CONTEXT_IS_DESTROYED of a stream whose context is gone; the default ones are those of the current one. */
CUresult tpc_stream_here(CUstream stream);
CUresult tpc_synchronize(const char *name); /* the current context */
/* For what has been queued in each context; for nothing while a stream captures. */
CUresult tpc_contexts_wait(void);
/* The home of a stream's context; of the default ones that of the current one, NULL without any. */
const struct tpc_context *tpc_stream_home(CUstream stream);
/* Remembers that everything in `stream` up to the call with that reply is complete, so that an immediate synchronise of it
 * needs no round trip. */
void tpc_stream_quiet(CUstream stream, const struct tp_reply *reply);
/* Whether a wait may be ended by the GPU itself (tp_done_begin): nothing is to be reported or carried across with it. */
bool tpc_may_mark(void);
/* After the mark was posted as the frame behind `before`: true when the GPU has come there and nothing failed. */
bool tpc_marked(const char *name, CUstream stream, const struct tp_done *done, uint64_t before);
/* Waits until the GPU itself says that `stream` has come here; false when that cannot be, or takes long: then wait by a call. */
bool tpc_wait_marked(const char *name, CUstream stream);
/* Pieces of memory whose contents are carried across with each launch and each wait (memory/hostmem.c): while there are any,
 * no wait can be ended by the GPU. */
extern _Atomic int tpc_twins;
/* Hears that the program is about to wait or to ask: a kernel may stand until it reads what was written behind its launch. */
typedef void tpc_before_wait(void);
TP_LIST(tpc_before_wait);

/* ---- event.c ---- */
/* Whether an event may have been recorded in a capture last. */
bool tpc_event_in_capture(CUevent event);
/* Other processes have it, or may: it is an interprocess event. */
bool tpc_event_is_shared(CUevent event);
/* Before an event is recorded in a stream, or ends; and when it was recorded, by a call with these flags or one of a context (api/, "check"
 * and "noted"). */
CUresult tpc_event_may_record(CUevent event, CUstream stream, unsigned int flags);
CUresult tpc_event_may_end(void);
void tpc_event_recorded(CUevent event, unsigned int flags);
void tpc_event_recorded_of_context(CUevent event);
/* What an event that was last recorded in a capture is answered, whatever is asked of it; success for all others. */
CUresult tpc_event_captured(const char *name, CUevent event);

/* Of memory operations, for which CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1 would have to be 1. */
CUresult tpc_first_form(const char *name);

/* ---- watch.c, timing.c ---- */
/* An answer to a query of an event or a stream that needs no round trip; and what a round trip answered, with the date
 * before it. */
bool tpc_watch_answer(uint64_t handle, bool stream, CUresult *result);
void tpc_watch_learned(uint64_t handle, bool stream, CUresult result, const struct tp_reply *reply,
                       const struct tpc_date *asked);
/* An event was recorded; counts in tpc_counts.records. */
void tpc_timing_recorded(uint64_t event);
/* Whether the last record of the event is known to be complete, and the events that are likely to be asked for next. */
struct tpc_sweep {
    uint64_t events[TP_AHEAD_MAX], places[TP_AHEAD_MAX], place;
    uint32_t count, era;
};
bool tpc_sweep_knows(uint64_t event);
void tpc_sweep_begin(struct tpc_sweep *sweep, uint64_t event, uint64_t now);
void tpc_sweep_learned(const struct tpc_sweep *sweep, CUresult result, uint64_t complete);
/* Events may have been recorded that are not in the order. */
void tpc_sweep_forget(void);
/* An event was recorded by something else than a call that says so: a kernel's attribute, in a graph if a stream captures. */
void tpc_watch_recorded(CUevent event);
/* From now on launches of graphs may record events. */
void tpc_watch_graphs_record(void);
/* A graph was launched, which may have recorded events. */
void tpc_watch_launched(void);

/* ---- capture.c ---- */
/* For a call that the driver refuses while captures are under way, by their modes and the calling thread's: refuses it,
 * which ends those captures, or lets it pass. */
CUresult tpc_capture_unsafe(const char *name);
#define TPC_CAPTURE_UNSAFE(name)                                                                                       \
    do {                                                                                                               \
        if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {                                  \
            CUresult unsafe = tpc_capture_unsafe(name);                                                                \
            if (unsafe != CUDA_SUCCESS) {                                                                              \
                return unsafe;                                                                                         \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)
/* For an operation that cannot be captured: refuses it if the stream captures, which ends the capture. */
CUresult tpc_capture_refuse(const char *name, CUstream stream);
/* What the legacy stream would wait for, a blocking stream that captures, is told before what modes forbid. */
static inline CUresult tpc_capture_implicit(const char *name, CUstream stream) {
    return stream == CU_STREAM_LEGACY ? tpc_capture_refuse(name, stream) : CUDA_SUCCESS;
}
/* The same for one that only this connection cannot make part of a graph: not supported, with a sentence that names `what`. */
CUresult tpc_capture_unserved(const char *name, CUstream stream, const char *what);
/* True when the stream captures. */
CUresult tpc_capture_status(CUstream stream, CUstreamCaptureStatus *status);
/* Recording an event, or waiting for one, as a node of its own has a meaning in a capturing stream only. */
CUresult tpc_capture_needed(CUstream stream);
/* A stream is destroyed. */
typedef void tpc_stream_gone(CUstream stream);
TP_LIST(tpc_stream_gone);
/* A capture under way. */
struct tpc_answer;
struct tpc_capture {
    struct tpc_capture *next;
    CUstream stream;
    uint32_t thread; /* that began it */
    uint32_t context;
    CUstreamCaptureMode mode;
    uint64_t id, graph;
    bool into;      /* into a graph that the program had */
    uint64_t known; /* tpc_counts.refusals when it was last known to be active */
    struct tpc_answer *answers;
};
/* It has begun; counted in tpc_captures by the caller, before. */
void tpc_capture_add(struct tpc_capture *capture);
/* Copies what is known of the capture that the stream began; false if none. */
bool tpc_capture_find(CUstream stream, struct tpc_capture *out);
/* It is over: taken out and no more counted; NULL if none. The caller frees it with the next. */
struct tpc_capture *tpc_capture_take(CUstream stream);
void tpc_capture_free(struct tpc_capture *capture);
/* What a stream says of its capture. */
struct tpc_capture_info {
    CUstreamCaptureStatus status;
    uint64_t id, graph;
};
CUresult tpc_capture_look(CUstream stream, struct tpc_capture_info *info);
/* The same by a question to the worker, with handles for nodes that have none. */
struct tpg_capture_info_out;
CUresult tpc_capture_ask(CUstream stream, const uint64_t *fresh, size_t count, struct tpg_capture_info_out *out,
                         struct tp_reply *reply);
/* Keeps the arrays of an answer until the stream is asked again or the capture ends. */
CUresult tpc_capture_keep(CUstream stream, const struct tpg_capture_info_out *answer, const CUgraphNode **nodes,
                          const CUgraphEdgeData **edges);
/* Ends the capture that the stream is in as an operation that is not allowed does. */
CUresult tpc_capture_break(const char *name, CUstream stream);

/* ---- callback.c ---- */
/* Why bytes of pinned memory may not be taken when an upload is called: host functions that are outstanding, and graphs that may
 * have some. */
extern _Atomic uint32_t tpc_late_reasons;
/* A graph was launched, which may have host functions; the worker says when all sent before a frame are through. */
void tpc_host_functions_launched(void);
void tpc_host_functions_through(uint64_t frame);
/* One of a graph is to run, or has run: these buffers of the graph's copies are to be fetched, or filled (`up`). If one is
 * refused the worker is told, and if it is the first the function must not run. */
typedef CUresult tpc_host_function_mixed(const uint64_t *buffers, size_t count, bool up);
TP_LIST(tpc_host_function_mixed);
/* A host function has run: what it wrote is to be there for what comes behind it. */
typedef void tpc_host_function_over(void);
TP_LIST(tpc_host_function_over);
/* Makes a token for a host function that runs at every launch of a graph. 0 without memory. */
uint64_t tpc_host_lasting(CUhostFn function, void *user);
/* What a token stands for; false for none. */
bool tpc_host_of(uint64_t token, CUhostFn *function, void **user);
/* The worker did not take the token. */
void tpc_host_refused(uint64_t token);

#endif
