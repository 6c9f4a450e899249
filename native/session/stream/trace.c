/*
 * The session's part of a trace: what became of each frame, and until when the GPU worked on it.
 *
 * Executor thread only, and only for a client that has asked (trace_begin): everybody else pays for a look at s->trace at each
 * answer that leaves and at each turn of the executor. The records are about this client's own frames and go to it alone, as
 * messages on its connection. So a client that asks takes no disk of the worker, and of its memory one buffer; what the client
 * does not read, or comes too fast, is left out and counted.
 *
 * The GPU's times are the timeline's (timeline.c): a stream that a frame has put work into gets a point behind it, unless it has
 * one, and the work is over when the executor sees the point. While a mark (done.c) stands behind the work, that is looked at
 * instead: a point behind it would make a stream "not ready" that the program knows to be done.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

#include <stdlib.h>
#include <tp_traced.h>

#define RECORDS 1000u           /* below TP_INLINE_MAX; so many records wait for a message */
#define ENOUGH 256u             /* then they leave between two frames */
#define LATEST_NS 1000000u      /* and so long after the first while there is nothing else to do */
#define UNREAD_MAX (256u << 10) /* of other output: then the client reads more slowly than it is told */
#define OUTSTANDING_MAX 256u    /* points of the trace in all streams */
#define MARKS 64u

struct marked {
    const _Atomic uint64_t *word; /* NULL: free */
    uint64_t value;
    struct tp_traced work;
};

struct tpw_trace {
    struct tp_traced records[RECORDS];
    size_t count;
    uint64_t left;        /* when the last message did */
    uint64_t lost;        /* records that had no room */
    uint32_t thread;      /* whose frame is under way: its answer stands in the frame's own record */
    uint32_t outstanding; /* points */
    struct marked marks[MARKS];
    uint32_t marks_used;
};

static void add(struct tpw_trace *trace, const struct tp_traced *record) {
    if (trace->count < RECORDS) {
        trace->records[trace->count++] = *record;
    } else {
        trace->lost++;
    }
}

static void tell(struct tpw_session *s, uint64_t token) {
    struct tpw_trace *trace = s->trace;
    if (!token && tpw_link_unread(s->link) > UNREAD_MAX) {
        trace->lost += trace->count;
    } else {
        struct tpg_traced_in in = {.token = token,
                                   .now = tp_now_ns(),
                                   .lost = trace->lost,
                                   .records = trace->records,
                                   .records_size = trace->count * sizeof *trace->records};
        tpg_send_traced(s, &in);
    }
    trace->count = 0;
    trace->left = tp_now_ns();
}

int32_t tpw_trace_begin(struct tpw_session *s, const struct tp_frame *frame, struct tpg_trace_begin_out *out) {
    int32_t error = CUDA_SUCCESS;
    char *boot = tpw_scratch(s, 40, 1, &error);
    TPW_TRY(error);
    s->trace = s->trace ? s->trace : calloc(1, sizeof *s->trace);
    if (!s->trace) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    s->traced = true;
    s->inside = true; /* the executor's turn ends here, with the frames that it does not trace */
    s->trace->thread = frame->thread;
    tp_boot_id(boot);
    out->boot = boot;
    out->boot_size = strnlen(boot, 40);
    out->now = tp_now_ns();
    return CUDA_SUCCESS;
}

int32_t tpw_trace_tell(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_trace_tell_in *in) {
    if (!s->trace || !in->token) {
        tpw_violation(s, frame, "trace_tell without a token, or without a trace");
        return TPW_LATER;
    }
    tell(s, in->token);
    return CUDA_SUCCESS;
}

void tpw_trace_leave(struct tpw_session *s) {
    if (s->trace->count) {
        tell(s, 0);
    }
}

/* ---- the GPU ---- */

static void over(struct tpw_trace *trace, struct tp_traced *work, int32_t error) {
    work->times[1] = tp_now_ns();
    work->result = error;
    add(trace, work);
}

static void reached(struct tpw_session *s, void *what, int32_t error) {
    s->trace->outstanding--;
    over(s->trace, what, error);
    free(what);
}

static void look_at_marks(struct tpw_trace *trace) {
    for (uint32_t i = 0; trace->marks_used && i < MARKS; i++) {
        struct marked *mark = &trace->marks[i];
        if (mark->word && (int64_t)(atomic_load_explicit(mark->word, memory_order_acquire) - mark->value) >= 0) {
            over(trace, &mark->work, CUDA_SUCCESS);
            mark->word = NULL;
            trace->marks_used--;
        }
    }
}

static void mark(struct tpw_trace *trace, const struct tpw_stream *stream, const struct tp_traced *work) {
    if (trace->marks_used == MARKS) {
        trace->lost++;
        return;
    }
    uint32_t at = 0;
    while (trace->marks[at].word) {
        at++;
    }
    trace->marks[at] = (struct marked){.word = stream->mark, .value = stream->marked, .work = *work};
    trace->marks_used++;
}

static uint64_t name_of(const struct tpw_stream *stream) {
    if (stream->name) {
        return stream->name;
    }
    return stream->native == CU_STREAM_LEGACY ? TP_TRACED_LEGACY
           : stream->thread                   ? TP_TRACED_THREADS
                                              : TP_TRACED_SESSIONS;
}

/* The frame, or one before it that had no room for its point, has put something into the stream. */
static void given(struct tpw_session *s, struct tpw_stream *stream, const struct tp_frame *frame, uint64_t number,
                  uint64_t begin) {
    struct tpw_trace *trace = s->trace;
    stream->trace_first = stream->trace_first ? stream->trace_first : number;
    struct tp_traced work = {.what = TP_TRACED_GPU,
                             .op = frame->op,
                             .thread = stream->thread ? stream->thread : frame->thread,
                             .frame = number,
                             .first = stream->trace_first,
                             .times = {begin},
                             .device = (uint16_t)stream->device,
                             .stream = name_of(stream)};
    if (stream->mark) {
        stream->trace_mark = stream->marked;
        mark(trace, stream, &work);
    } else if (trace->outstanding < OUTSTANDING_MAX) {
        struct tp_traced *kept = malloc(sizeof *kept);
        if (kept) {
            *kept = work;
        }
        if (!kept ||
            tpw_when_reached(s, stream, reached, kept)) { /* whatever uses the stream next says what is wrong */
            free(kept);
            trace->lost++;
        } else {
            trace->outstanding++;
        }
    } else {
        return;
    }
    stream->trace_first = 0;
    stream->trace_point = stream->issued;
}

static bool has_news(const struct tpw_stream *stream) {
    if (stream->mark) {
        return stream->dirty && stream->marked != stream->trace_mark;
    }
    return stream->dirty || stream->trace_first || stream->issued != stream->trace_point;
}

/* ---- frames ---- */

void tpw_trace_frame(struct tpw_session *s, const struct tp_frame *frame, const struct tpw_executed *executed) {
    struct tpw_trace *trace = s->trace;
    const bool call = frame->flags & TP_FRAME_CALL;
    struct tp_traced record = {.what = TP_TRACED_FRAME,
                               .op = frame->op,
                               .thread = frame->thread,
                               .frame = executed->number,
                               .times = {executed->received, executed->begin, executed->end},
                               .result = executed->answered ? s->answer : 0,
                               .how = executed->answered ? TP_TRACED_ANSWERED
                                      : call             ? TP_TRACED_LATER
                                                         : TP_TRACED_POSTED};
    add(trace, &record);
    /* In the middle of another frame its context is not left: the next frame finds what this one gave. */
    for (struct tpw_stream *stream = s->streams; stream && !s->inside && !s->ended; stream = stream->next) {
        if (has_news(stream) && tpw_touchable(s, stream)) {
            given(s, stream, frame, executed->number, executed->begin);
        }
    }
    if (trace->count >= ENOUGH && !s->inside) {
        tell(s, 0);
    }
}

void tpw_trace_begins(struct tpw_session *s, const struct tp_frame *frame) { s->trace->thread = frame->thread; }

void tpw_trace_answer(struct tpw_session *s, uint16_t op, uint32_t thread, int32_t result) {
    if (thread != s->trace->thread) {
        add(s->trace,
            &(struct tp_traced){
                .what = TP_TRACED_ANSWER, .op = op, .thread = thread, .times = {tp_now_ns()}, .result = result});
    }
}

void tpw_trace_turn(struct tpw_session *s) {
    struct tpw_trace *trace = s->trace;
    trace->thread = 0;
    look_at_marks(trace);
    if (trace->count >= ENOUGH || (trace->count && tp_now_ns() - trace->left > LATEST_NS)) {
        tell(s, 0);
    }
}

bool tpw_trace_owed(const struct tpw_session *s) { return s->trace && s->trace->marks_used; }
