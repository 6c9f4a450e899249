/*
 * The executor's loop: frames in the client's order, completions between them, sleep when there is nothing.
 *
 * One thread. It spins for a short time after the last news, because the next frame of a busy client is microseconds away and
 * waking a sleeping process costs more than that; then it sleeps, at first briefly while the GPU still owes completions. While
 * a client sends and sends and waits for nothing it naps instead: nobody hears of the microseconds between two frames.
 */
#include "tpg_session.h"
#include "tpw_stream.h"

#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <tp_net.h>
#include <unistd.h>

#define SPIN_NS 100000u   /* after the last news, before sleeping; less where cores are few */
#define FRAMES_A_TURN 64u /* then completions get a look, so that one flood cannot starve waiting threads */
/* Then the executor yields for so many times as long, or less (`learned`), before it sleeps: a program's pauses are short, and
 * waking costs it 2 µs in the call and 15 µs until the GPU has the work. Longer while the GPU owes completions, or owes the client a word; after
 * that it sleeps for a part of the time that it has waited: nobody notices a wait that becomes a thirtieth longer, but
 * everybody a copy of 0.3 ms that takes 0.25 ms more. */
#define LINGER 10u
#define LINGER_OWED 20u
/* A yield that takes so long has given the core to somebody else for a turn of milliseconds. Then, and for a while after, the
 * executor sleeps instead: who wakes for a short turn is let in at once, who yields waits for the other's turn to end. */
#define CROWDED_NS 200000u
#define CROWDED_FOR_NS 20000000u
#define WATCH_FIRST_NS 20000u
#define WATCH_MOST_NS 500000u
#define WATCH_PART 32u
#define IDLE_NS 1000000000u
#define FIRST_FRAME_NS 10000000000u
#define STREAMING 64u       /* so many frames in a row that nobody waits for, */
#define STREAMING_SLOW 8u   /* or so many from a program that takes its time */
#define NAP_LEAST_NS 25000u /* a few launches */
#define NAPPING_NS 1000000u /* without a frame, before the executor sleeps */
#define SLICE_NS 100000u    /* the least that the kernel takes */

/* ---- frames held back ----
 *
 * A stream that stands at a host function fills up, and the driver then blocks whoever queues the next command: for ever, if
 * that is this thread, because the client's word that the function has run comes behind those very commands. So when such a
 * stream is about full (tpw_stream_count) the executor reads on without executing, until no host function is outstanding. A
 * program whose host function waits for more of its own calls than that hangs here as it does on the driver itself. The same
 * holds for a stream that stands until the bytes of a copy come from the client (copy_late.c).
 *
 * An operation that waits for what only a completion gives back (pinned memory, a limit) may wait for such a stream, too. So whoever waits in
 * the middle of a frame lets the streams go on meanwhile (tpw_wait_a_moment). */

/* Then nothing more is read. An honest client stops at TP_BEHIND_MAX, but for what must not wait there (`urgent`). */
#define HELD_BYTES (2 * TP_BEHIND_MAX)
#define FULL_FOR_NS 1000000u

struct held {
    struct held *next;
    uint64_t number, received;
    struct tp_frame frame; /* with its body behind it */
};

static struct held *held, **held_end = &held;
static struct held *alone, **alone_end = &alone; /* calls whose threads wait, while the others go on */
static size_t held_bytes;                        /* of both */
static uint64_t held_count, held_passing;

/* Now and then the streams are asked: one may have gone on behind the function of another, and in a context that an error has
 * broken no function runs any more, and no command blocks. */
static bool still_full(struct tpw_session *s) {
    static uint64_t asked;
    uint64_t now = tp_now_ns();
    if (now - asked > FULL_FOR_NS) {
        asked = now;
        s->full = tpw_streams_full(s);
    }
    return s->full;
}

/* An operation in which the driver waits for the GPU (`waits` in api/) would keep this thread from hearing that a host
 * function has run, for which the GPU waits: loading a module behind one, natively a wait, would be for ever. So it is
 * held like what is behind it, until nothing stands. */
static bool waiting;

static bool anything_stands(struct tpw_session *s) {
    return (tpw_callbacks_outstanding(s) && tpw_streams_stand(s)) || (s->words && tpw_words_stand(s));
}

static bool still_waiting(struct tpw_session *s) {
    static uint64_t asked;
    uint64_t now = tp_now_ns();
    if (now - asked > FULL_FOR_NS) {
        asked = now;
        waiting = anything_stands(s);
    }
    return waiting;
}

/* A stream may also stand at a word that the client has written later (cuStreamWaitValue64): by another thread, in another
 * stream, with whatever writes memory. Natively that thread goes on while this one waits in the driver. So a call is then held by itself:
 * its thread does nothing until it is answered, and what others send has no part in it. What a thread posts in such a place comes as a call
 * (TPC_WAITS), because it would go on and tell others of it; where one comes as a post all the same, everything is held behind it. */
static bool must_wait_alone(struct tpw_session *s, const struct tp_frame *frame) {
    return s->words && frame->flags & TP_FRAME_CALL && tpg_waits(s, frame) && tpw_words_stand(s);
}

static bool must_wait(struct tpw_session *s, const struct tp_frame *frame) {
    waiting = (tpw_callbacks_outstanding(s) || s->words) && tpg_waits(s, frame) && anything_stands(s);
    return waiting;
}

static bool standing(struct tpw_session *s) {
    static bool before;
    if (TP_LIKELY(!tpw_callbacks_outstanding(s))) {
        if (before) {
            s->hosts++;
            s->full = before = false;
        }
        waiting = waiting && s->words && still_waiting(s);
        return waiting;
    }
    before = true;
    if (waiting && still_waiting(s)) {
        return true;
    }
    return s->full && still_full(s);
}

/* What a host function waits for that touches managed memory: it passes what is held behind the function, but between frames alone, and
 * not where one of them waits half-way. */
static bool passes(const struct tp_frame *frame) {
    return frame->op == TPG_OP_managed_in || frame->op == TPG_OP_managed_in_bulk || frame->op == TPG_OP_managed_out ||
           frame->op == TPG_OP_managed_settle;
}

/* What lets a stream go on, and what the client sends before that: what the function wrote into mapped memory, or is to find. */
static bool goes_on(const struct tp_frame *frame) {
    return frame->op == TPG_OP_host_function_done || frame->op == TPG_OP_late_bytes ||
           frame->op == TPG_OP_host_twin_write || frame->op == TPG_OP_host_twin_read;
}

static bool keep(struct tpw_session *s, const struct tp_frame *frame, struct held ***end) {
    struct held *copy = malloc(offsetof(struct held, frame) + frame->size);
    if (!copy) {
        return false;
    }
    memcpy(&copy->frame, frame, frame->size);
    copy->number = s->frames + ++held_count;
    copy->received = s->traced ? tp_now_ns() : 0;
    copy->next = NULL;
    **end = copy;
    *end = &copy->next;
    held_bytes += frame->size;
    held_passing += passes(frame);
    return true;
}

static const struct tp_frame *take(struct held **list, struct held ***end, struct held **done) {
    *done = *list;
    *list = (*done)->next;
    *end = *list ? *end : list;
    held_bytes -= (*done)->frame.size;
    held_count--;
    held_passing -= passes(&(*done)->frame);
    return &(*done)->frame;
}

/* The first of those held that passes the others. */
static const struct tp_frame *take_passing(struct held **done) {
    struct held **at = &held;
    while (!passes(&(*at)->frame)) {
        at = &(*at)->next;
    }
    return take(at, &held_end, done);
}

/* The first of the calls that are held by themselves, once nothing stands any more; the streams are asked now and then. */
static bool alone_may_go(struct tpw_session *s) {
    static uint64_t asked;
    if (!s->words && !tpw_callbacks_outstanding(s)) {
        return true;
    }
    uint64_t now = tp_now_ns();
    if (now - asked < FULL_FOR_NS) {
        return false;
    }
    asked = now;
    return !anything_stands(s);
}

/* The next frame to execute: of those held, or from the link; while something stands, only what lets it go on. *done is to be
 * freed after it was executed. */
static const struct tp_frame *next_frame(struct tpw_session *s, bool stands, enum tp_status *status,
                                         struct held **done) {
    *done = NULL;
    if (TP_UNLIKELY(alone != NULL) && !stands && alone_may_go(s)) {
        return take(&alone, &alone_end, done);
    }
    while (TP_UNLIKELY(held && !stands && must_wait_alone(s, &held->frame))) {
        struct held *copy = held;
        held = copy->next;
        held_end = held ? held_end : &held;
        copy->next = NULL;
        *alone_end = copy;
        alone_end = &copy->next;
    }
    stands |= held && !stands && must_wait(s, &held->frame);
    if (TP_UNLIKELY(held && !stands)) {
        return take(&held, &held_end, done);
    }
    if (TP_UNLIKELY(held_passing && !s->inside)) {
        return take_passing(done);
    }
    const struct tp_frame *frame;
    while (((!stands && !alone) || held_bytes < HELD_BYTES) && (frame = tpw_link_next(s->link, status)) != NULL) {
        const bool by_itself = !stands && must_wait_alone(s, frame);
        stands = stands || (!by_itself && must_wait(s, frame));
        if (TP_LIKELY(!stands && !by_itself) || goes_on(frame) || (!s->inside && passes(frame))) {
            return frame;
        }
        if (!(by_itself ? keep(s, frame, &alone_end) : keep(s, frame, &held_end))) {
            *status = TP_ERROR_MEMORY;
            return NULL;
        }
    }
    return NULL;
}

/* The client's number of the frame that next_frame gave: its place in the order in which they came, not that in which they are
 * executed. It is counted as executed already. */
static uint64_t number_of(const struct tpw_session *s, const struct held *copy) {
    return TP_UNLIKELY(copy != NULL) ? copy->number : s->frames + held_count;
}

static void write_line(const struct tp_frame *frame, const struct tpw_executed *executed, int32_t answer) {
    const uint64_t took = executed->end - executed->begin;
    char result[32] = "posted";
    if (executed->answered) {
        snprintf(result, sizeof result, "result %d", (int)answer);
    } else if (frame->flags & TP_FRAME_CALL) {
        snprintf(result, sizeof result, "answered later");
    }
    tp_log_write(TP_TRACE, "frame %llu: %s, %u bytes, thread %u: %s, %llu.%03u us",
                 (unsigned long long)executed->number, tpg_op_name(frame->op), frame->size, frame->thread, result,
                 (unsigned long long)(took / 1000), (unsigned)(took % 1000));
}

/* The same as tpg_dispatch, with a line behind it, or a record for the client. */
static TP_COLD void dispatch_traced(struct tpw_session *s, const struct tp_frame *frame, const struct held *copy) {
    const struct tp_frame header = *frame; /* the link's memory may move */
    struct tpw_executed executed = {.number = s->number, .begin = tp_now_ns()};
    executed.received = copy && copy->received ? copy->received : executed.begin;
    if (s->trace) {
        tpw_trace_begins(s, &header);
    }
    s->answered = 0;
    tpg_dispatch(s, frame);
    executed.end = tp_now_ns();
    executed.answered = s->answered == header.thread;
    if (atomic_load_explicit(&tp_log_threshold, memory_order_relaxed) <= TP_TRACE) {
        write_line(&header, &executed, s->answer);
    }
    if (s->trace) {
        tpw_trace_frame(s, &header, &executed);
    }
}

static inline void dispatch(struct tpw_session *s, const struct tp_frame *frame, const struct held *copy, bool traced) {
    s->number = number_of(s, copy);
    if (traced) {
        dispatch_traced(s, frame, copy);
    } else {
        tpg_dispatch(s, frame);
    }
}

/* Executes up to a turn's frames; true if there was one. Inlined twice, so that what is not traced does not ask. */
static inline __attribute__((always_inline)) bool frames_of(struct tpw_session *s, bool traced) {
    enum tp_status status = TP_OK;
    unsigned done = 0;
    for (; done < FRAMES_A_TURN && !s->ended; done++) {
        struct held *copy;
        const struct tp_frame *frame = next_frame(s, standing(s), &status, &copy);
        if (!frame) {
            break;
        }
        s->frames++;
        bool call = frame->flags & TP_FRAME_CALL;
        s->calls += call;
        s->waited_for += call;
        s->posts++;
        if (call) {
            tpw_stops_streaming(s);
        }
        dispatch(s, frame, copy, traced);
        /* Somebody waits for this answer; but what a session says that is ending half-way is no answer: its client learns of
         * the loss instead. */
        if (call && !s->ended) {
            tpw_link_flush(s->link);
        }
        free(copy);
        if (TP_UNLIKELY(s->inside)) {
            s->inside = false;
            tpw_link_keep_over(s->link);
            if (s->traced != traced) { /* a trace has begun */
                done++;
                break;
            }
        }
    }
    if (status != TP_OK) {
        s->ended = true;
        if (status == TP_ERROR_PROTOCOL) {
            s->exit_code = 3;
        }
    }
    return done > 0;
}

static TP_COLD bool frames_traced(struct tpw_session *s) { return frames_of(s, true); }

static bool frames(struct tpw_session *s) { return TP_UNLIKELY(s->traced) ? frames_traced(s) : frames_of(s, false); }

/* The frame under way keeps its bytes and its scratch. Of the others only the word that a function has run, or bytes that a stream
 * waits for, are executed. */
bool tpw_go_on(struct tpw_session *s) {
    enum tp_status status = TP_OK; /* the loop meets it again */
    struct held *none;
    if (!tpw_callbacks_outstanding(s) || !tpw_link_keep(s->link)) {
        return false;
    }
    s->inside = true;
    bool news = tpw_callbacks_tell(s);
    const struct tp_frame *frame = next_frame(s, true, &status, &none);
    if (frame) {
        struct tpw_scratch_block *scratch = s->scratch;
        s->scratch = NULL;
        const uint64_t number = s->number;
        s->frames++;
        dispatch(s, frame, NULL, s->traced);
        s->number = number;
        tpw_scratch_free(s);
        s->scratch = scratch;
        news = true;
    }
    return news;
}

bool tpw_hold_while(struct tpw_session *s, tpw_condition *stands, void *what) {
    while (!s->ended && stands(s, what)) {
        if (!tpw_wait_a_moment(s)) {
            return false;
        }
    }
    return !s->ended;
}

/* Frames are executed in their order: its turn is the answer. */
int32_t tpw_caught_up(struct tpw_session *s, const struct tp_frame *frame) { return CUDA_SUCCESS; }

int32_t tpw_layouts(struct tpw_session *s, const struct tp_frame *frame, struct tpg_layouts_out *out) {
    out->rows = tpg_layouts;
    out->rows_size = sizeof tpg_layouts;
    return CUDA_SUCCESS;
}

static bool standing_still(struct tpw_session *s, void *unused) { return standing(s); }

bool tpw_hold_on(struct tpw_session *s) {
    return TP_LIKELY(!s->full) ? !s->ended : tpw_hold_while(s, standing_still, NULL);
}

/* Nobody waits for an answer or for the GPU, and by what was sent and told last nobody will soon: how long to nap, else 0. */
static uint64_t nap_of(struct tpw_session *s, uint64_t now) {
    if (s->posts <= STREAMING_SLOW || s->calls || s->full || tpw_pending(s) || tpw_callbacks_outstanding(s) ||
        tpw_mark_owed(s)) {
        return 0;
    }
    s->streams_since = s->streams_since ? s->streams_since : now;
    const uint64_t ns = tp_nap_ns(now - s->streams_since, NAP_LEAST_NS);
    return s->posts > STREAMING || ns > NAP_LEAST_NS ? ns : 0;
}

/* How long to linger after a pause of the program, as the kernel learns how long to poll before it halts: twice as long where that
 * would have been enough, half as long where nothing is. A program that is away for long each time does not pay for it each time. */
static uint64_t learned(uint64_t linger, uint64_t pause, uint64_t spin) {
    const uint64_t most = LINGER * spin;
    if (pause > most) {
        return linger / 2 < spin ? 0 : linger / 2;
    }
    if (pause > linger) {
        linger = linger ? 2 * linger : 2 * spin;
    }
    return linger < most ? linger : most;
}

static void wait_for_client(struct tpw_session *s) {
    struct pollfd on = {.fd = s->control, .events = POLLIN};
    while (!s->link && !s->ended) {
        poll(&on, 1, -1);
        TP_TELL(tpw_control, s);
    }
}

/* Whoever is let in and says nothing holds a place that another could have. */
static void wait_for_first_frame(struct tpw_session *s) {
    const uint64_t until = tp_now_ns() + FIRST_FRAME_NS;
    while (!s->ended && tpw_link_status(s->link) == TP_OK && !tpw_link_begins(s->link)) {
        const uint64_t now = tp_now_ns();
        if (now >= until) {
            tp_log(TP_WARN, "the client is ended: it has asked for nothing in %u s",
                   (unsigned)(FIRST_FRAME_NS / 1000000000u));
            s->ended = true;
            return;
        }
        tpw_link_wait(s->link, s->events, until - now < IDLE_NS ? until - now : IDLE_NS);
        TP_TELL(tpw_control, s);
    }
    s->spoken = !s->ended;
    TP_TELL(tpw_control, s);
}

/* Asks the scheduler for short turns: a thread that wakes for a short turn is let onto a core where somebody has a long one,
 * and a program's other threads often spin for tens of milliseconds behind a parallel loop, one on each core. From Linux
 * 6.12 on; before that, and where it is refused, nothing changes. */
static void want_short_turns(void) {
    struct { /* struct sched_attr of sched_setattr(2), first version */
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } turns;
    memset(&turns, 0, sizeof turns);
    if (!syscall(SYS_sched_getattr, 0, &turns, sizeof turns, 0) && turns.policy == SCHED_OTHER) {
        turns.size = sizeof turns;
        turns.runtime = SLICE_NS;
        syscall(SYS_sched_setattr, 0, &turns, 0);
    }
}

void tpw_execute(struct tpw_session *s) {
    s->hosts = 1;
    s->traced = atomic_load_explicit(&tp_log_threshold, memory_order_relaxed) <= TP_TRACE;
    want_short_turns();
    prctl(PR_SET_TIMERSLACK, 1000); /* sleeps between frames are short, and the default adds 50 µs to each */
    wait_for_client(s);
    wait_for_first_frame(s);
    const uint64_t spin = tp_spin_ns(SPIN_NS);
    uint64_t last = tp_now_ns(), crowded = 0, linger = LINGER * spin;
    bool paused = false; /* the program does something else, and the GPU owes it nothing */
    unsigned quiet = 0, turn = 0;
    while (!s->ended) {
        if (++turn % 64 == 0) {
            TP_TELL(tpw_control, s); /* a data connection may be on its way while frames keep coming */
        }
        bool news = frames(s);
        /* Host functions, too, however many frames come: natively a function runs beside what its program sends. */
        const bool done = tpw_poll(s), called = tpw_callbacks_run(s);
        if (done || called) {
            news = true;
            tpw_stops_streaming(s); /* who hears of it goes on */
        }
        if (TP_UNLIKELY(s->trace != NULL)) {
            tpw_trace_turn(s);
        }
        if (s->ended) {
            break;
        }
        tpw_link_flush(s->link);
        tpw_words_write(s);
        if (news) {
            linger = paused ? learned(linger, tp_now_ns() - last, spin) : linger;
            paused = false;
            last = 0;
            quiet = 0;
            continue;
        }
        if (++quiet % 16 != 0) {
            tp_pause();
            continue;
        }
        /* The clock is looked at once in sixteen empty turns. */
        uint64_t now = tp_now_ns();
        last = last ? last : now;
        uint64_t waited = now - last;
        const uint64_t naps = nap_of(s, now);
        if (naps && waited < NAPPING_NS && tpw_link_nap(s->link, naps, NAP_LEAST_NS)) {
            continue;
        }
        if (!naps && waited < spin) {
            continue;
        }
        bool owed = tpw_pending(s) > 0 || s->full || waiting || alone;
        const bool lingers = owed || tpw_mark_owed(s);
        paused = !naps && !lingers;
        if (!naps && waited < (lingers ? LINGER_OWED * spin : linger) && now - crowded > CROWDED_FOR_NS) {
            sched_yield();
            uint64_t back = tp_now_ns();
            crowded = back - now > CROWDED_NS ? back : crowded;
            continue;
        }
        uint64_t watch = waited / WATCH_PART;
        watch = watch < WATCH_FIRST_NS ? WATCH_FIRST_NS : watch > WATCH_MOST_NS ? WATCH_MOST_NS : watch;
        if (TP_UNLIKELY(s->trace != NULL)) {
            tpw_trace_leave(s);
            owed |= tpw_trace_owed(s);
        }
        tpw_figures_tell(s);
        tpw_link_wait(s->link, s->events, owed ? watch : IDLE_NS);
        s->streams_since = 0;
        TP_TELL(tpw_control, s);
        tpw_callbacks_run(s);
    }
}
