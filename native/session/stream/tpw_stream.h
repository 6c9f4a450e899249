/*
 * Streams and order: what is queued where, when it is complete, what leaves for the client and in which order.
 *
 * Executor thread only, except for the stubs of callback.c. What is captured belongs to the client: nothing of the session's
 * own (points, orderings, queries) may be put into a capturing stream, or into the legacy stream while a blocking stream
 * captures, because the driver would record it or end the capture. Handles and counts come from a hostile client.
 */
#ifndef TPW_STREAM_H
#define TPW_STREAM_H

#include "tpw_session.h"

/* ---- native.c ---- */
/* The driver's handle behind a client's handle of `kind` (or of a kind that is taken in its place); special streams included.
 * On failure sets *error (if it is still 0) and returns 0. */
uint64_t tpw_native(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle, bool optional,
                    int32_t *error);
/* The same for `count` handles, in scratch memory. */
uint64_t *tpw_natives(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, const uint64_t *handles,
                      size_t count, int32_t *error);

/* Where the GPU writes how far a stream has come. Its memory is never given back. */
struct tpw_word {
    struct tpw_word *next;
    _Atomic uint64_t *value; /* pinned */
    CUdeviceptr device;
    struct tpw_lane *lane; /* kernel_bound.c; NULL: no launch of its streams was ever to be bounded */
};

/* ---- stream.c ---- */
/* A stream that work can be in: one the client made, the legacy stream of a context, a thread's default stream. */
struct tpw_stream {
    struct tpw_stream *next;
    CUstream native;
    CUcontext context;
    uint32_t context_id;
    uint32_t home;                /* the primary context that its green context is a part of, else the same */
    uint32_t device;              /* index of its context's */
    uint32_t thread;              /* of a per-thread default stream, else 0 */
    uint32_t pending;             /* waits for it that have not completed */
    uint32_t hosts;               /* s->hosts when a host function was last queued here: it may stand there */
    uint32_t behind;              /* commands queued behind that host function, about */
    bool stands;                  /* it may stand at a word that the client has written later */
    uint64_t stands_before;       /* a point behind the last such word, 0 = none yet */
    struct tpw_word *word;        /* where the GPU writes how far it has come; NULL before the first point */
    uint64_t issued, reached;     /* points of its timeline: the last one, and the last one known to be done */
    uint64_t awaited;             /* the oldest point that somebody waits for, 0 = none */
    uint64_t launched;            /* s->frames at a launch that is the last thing in it; kernel_bound.c */
    bool dirty;                   /* work was put in since its last point */
    const _Atomic uint64_t *mark; /* a word that the GPU writes behind all else; NULL: something came after that */
    uint64_t marked;              /* what it will be */
    uint64_t name;                /* the client's handle, 0 = none */
    uint64_t trace_point, trace_mark, trace_first; /* up to where trace.c has seen it */
    bool dying;                                    /* destroyed by the client; ends when its last wait has completed */
    bool beside; /* moves managed memory: host functions wait for it, so it must not wait for them */
};
/* The stream behind a frame's handle: 0 and 1 legacy, 2 the calling thread's own default stream. Marks it dirty. */
struct tpw_stream *tpw_stream_of(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error);
/* The same for who puts nothing in yet: does not mark it. */
struct tpw_stream *tpw_stream_find(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle,
                                   int32_t *error);
/* A new stream of the session's own in the current context; NULL where the driver gives none, or would wait for the GPU in it while
 * that stands at a host function. */
struct tpw_stream *tpw_stream_aside(struct tpw_session *s);
/* Nobody puts anything into it any more: it ends once its last wait has completed. NULL is none. */
void tpw_stream_leave(struct tpw_session *s, struct tpw_stream *stream);
CUstream tpw_stream(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error);
/* The record of a native that one of these two gave, NULL if there is none. Its context need not be the current one: copies and
 * waits are allowed in any stream. Only the legacy stream has the same native in each context, and means the current one's. */
struct tpw_stream *tpw_stream_native(struct tpw_session *s, CUstream native);
/* Makes the stream's own context the current one, for what the session itself puts into it. */
void tpw_enter_stream(struct tpw_session *s, const struct tpw_stream *stream);
/* Gives the driver's stream back and forgets it; called when no wait is left for a stream that the client destroyed. A
 * wait for the whole context may still put one into a dying stream, so this is not the end of the destroying call. */
void tpw_stream_end(struct tpw_session *s, struct tpw_stream *stream, int32_t error);
/* Counts commands in a stream that may stand at a host function. */
void tpw_stream_count(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands);
/* Asks the driver whether a stream is full still; visits its context. */
bool tpw_streams_full(struct tpw_session *s);
/* The same for a stream that may stand at a host function or at a copy whose bytes come late, full or not. */
bool tpw_streams_stand(struct tpw_session *s);
/* The client's stream may stand at a word from here on; or those in which it launches graphs. */
#define TPW_IN_GRAPHS UINT64_MAX
void tpw_stands(struct tpw_session *s, const struct tp_frame *frame, uint64_t stream, int32_t *error);
void tpw_launches(struct tpw_session *s, struct tpw_stream *stream);
/* Whether one does still, by the driver. Visits its context. */
bool tpw_words_stand(struct tpw_session *s);
/* Whether so many more would leave it short of full, should it stand. */
bool tpw_stream_has_room(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands);
/* Ends all streams of a context that is going, or all of them (context 0). */
void tpw_streams_gone(struct tpw_session *s, uint32_t context);

/* ---- executor.c ---- */
/* Runs until the client or the supervisor has gone. */
void tpw_execute(struct tpw_session *s);
/* What the supervisor has sent is to be looked at: data connections, the end. */
typedef void tpw_control(struct tpw_session *s);
TP_LIST(tpw_control);
void tpw_figures_tell(struct tpw_session *s); /* figures.c: now, for a question to the supervisor that follows */
/* Waits while a stream is about full behind a host function; false when the session ends. Between the commands of one operation. */
bool tpw_hold_on(struct tpw_session *s);
/* In the middle of a frame: host functions and late copies go on, by what the client sends for them. Other frames are held
 * back. True if there was something. */
bool tpw_go_on(struct tpw_session *s);
/* Waits while that says so, as tpw_wait_a_moment waits. False when the session ends. */
typedef bool tpw_condition(struct tpw_session *s, void *what);
/* Whether making a stream of the session's own may have the driver wait behind a host function; and what waits until it will not,
 * in the middle of an operation: an error when the session ends instead. */
bool tpw_stream_may_wait(struct tpw_session *s);
int32_t tpw_stream_room(struct tpw_session *s);
bool tpw_hold_while(struct tpw_session *s, tpw_condition *stands, void *what);

/* ---- wait.c ---- */
/* Lets completions, host functions, late copies, data connections and the supervisor go on for a moment; false when the session is about to end. For
 * operations that need something which only a completion or the client can give. */
bool tpw_wait_a_moment(struct tpw_session *s);
/* Waits while `more` says so, but not longer than a stream that goes on ever needs; false when it still does. */
bool tpw_wait_briefly(struct tpw_session *s, bool (*more)(struct tpw_session *s));

/* ---- timeline.c ----
 * `done` runs on the executor when everything that was queued in `stream` before this call has finished (error 0) or can
 * no longer finish (the context's error). Never waits. */
typedef void tpw_done(struct tpw_session *s, void *what, int32_t error);
int32_t tpw_when_done(struct tpw_session *s, CUstream stream, tpw_done *done, void *what); /* a stream of tpw_stream */
/* The same for a stream that may have a point behind its work already, which is then waited for. */
int32_t tpw_when_reached(struct tpw_session *s, struct tpw_stream *stream, tpw_done *done, void *what);
/* A point behind all that is in the stream, for nobody yet; 0 with the driver's error. And whether it was reached. */
uint64_t tpw_point(struct tpw_session *s, struct tpw_stream *stream);
bool tpw_point_reached(struct tpw_stream *stream, uint64_t point);
/* A point that nobody waits for. Enters the stream's context. */
int32_t tpw_put_point(struct tpw_session *s, struct tpw_stream *stream);
/* The same for everything queued in any stream of the current context. */
int32_t tpw_when_all_done(struct tpw_session *s, tpw_done *done, void *what);
/* The same for every context of the session. */
int32_t tpw_when_everything_done(struct tpw_session *s, tpw_done *done, void *what);
/* The same for a recorded event, by handle and native, or with 0 for a stream that must get no point: the driver is asked again
 * and again. It may be destroyed meanwhile, which ends the wait with success because the driver, too, lets queued work finish. */
int32_t tpw_when_complete(struct tpw_session *s, uint64_t event, uint64_t native, tpw_done *done, void *what);
/* Runs what has completed; true if something had. Called by the executor between frames and by operations that have to wait
 * for a resource (staging memory, address space) which only a completion can give back. */
bool tpw_poll(struct tpw_session *s);
/* Nothing is left in the stream but what the session itself has put behind the program's work, and that has done its part. */
bool tpw_timeline_over(struct tpw_stream *stream);
/* Gives a stream's word back, when the stream is forgotten. */
void tpw_timeline_end(struct tpw_session *s, struct tpw_stream *stream);
/* Ends every wait in a context that is going (0 = all) with an error. */
void tpw_waits_end(struct tpw_session *s, uint32_t context, int32_t error);
/* A completion is running. */
bool tpw_completing(const struct tpw_session *s);
/* Number of waits not completed. */
size_t tpw_pending(const struct tpw_session *s);
/* Puts a point into every stream with work that has none behind it, so that this work can be waited for during a capture
 * that the stream may become part of. */
void tpw_waits_settle(struct tpw_session *s);
/* Somebody waits for the event by its handle. */
bool tpw_waits_for_event(const struct tpw_session *s, uint64_t event);
/* These waits become waits for all that is in `stream`. */
int32_t tpw_waits_move(struct tpw_session *s, uint64_t event, struct tpw_stream *stream);
/* Or they end with success. */
void tpw_waits_end_event(struct tpw_session *s, uint64_t handle);

/* ---- event_share.c ---- */
/* Before the event ends: other processes cannot open it any more. */
void tpw_event_unshare(struct tpw_session *s, const struct tpw_object *object);

/* ---- answer.c ---- */
/* Keeps the first failure of a post for the next operation that may report it, and tells the client with a notice. */
void tpw_defer(struct tpw_session *s, const struct tp_frame *frame, int32_t error);
/* Lets go what the client must have before it is told that something is complete: the bytes of copies that are complete too,
 * and what kernels wrote into mapped host memory. Generated code calls it for every answer and message that completes. */
void tpw_leave(struct tpw_session *s);
/* The result to answer an operation with, when what must leave before has left: `error`, or the deferred one if there is none
 * and the operation reports. */
int32_t tpw_result(struct tpw_session *s, uint16_t op, int32_t error);
/* Room for the body of an answer; tpw_reply_commit must follow. */
unsigned char *tpw_answer_begin(struct tpw_session *s, uint16_t op, uint32_t thread, int32_t result, size_t size);
/* Ends an operation without outputs: answers a call, keeps the failure of a post. */
void tpw_conclude(struct tpw_session *s, const struct tp_frame *frame, int32_t error);
/* A reply that is sent later: remembers whom to answer. */
struct tpw_ticket {
    uint16_t op;
    uint16_t flags;
    uint32_t thread;
};
static inline struct tpw_ticket tpw_ticket(const struct tp_frame *frame) {
    return (struct tpw_ticket){.op = frame->op, .flags = frame->flags, .thread = frame->thread};
}
void tpw_answer(struct tpw_session *s, struct tpw_ticket ticket, int32_t error);
/* What kernels wrote into mapped host memory leaves now; told while s->twins counts any. */
typedef void tpw_twins_leave(struct tpw_session *s);
TP_LIST(tpw_twins_leave);
/* Pools give back what is free; told while s->pools_freed has any. */
typedef void tpw_pools_leave(struct tpw_session *s);
TP_LIST(tpw_pools_leave);

/* ---- trace.c ---- all but the last while there is s->trace */
struct tpw_executed {
    uint64_t number, received, begin, end;
    bool answered; /* within that time */
};
void tpw_trace_begins(struct tpw_session *s, const struct tp_frame *frame);
/* Has been executed; puts points into streams. */
void tpw_trace_frame(struct tpw_session *s, const struct tp_frame *frame, const struct tpw_executed *executed);
void tpw_trace_answer(struct tpw_session *s, uint16_t op, uint32_t thread, int32_t result);
/* Between frames: what is complete is looked at, and leaves now and then. */
void tpw_trace_turn(struct tpw_session *s);
void tpw_trace_leave(struct tpw_session *s); /* now */
/* A word is waited for that wakes nobody. */
bool tpw_trace_owed(const struct tpw_session *s);

/* ---- capture.c ---- */
/* A capture under way, by the stream that began it. */
struct tpw_capture {
    struct tpw_capture *next;
    struct tpw_stream *origin;
    uint64_t id;
    uint64_t graph; /* the client's handle */
    bool into;      /* into a graph that the client had */
};

/* Whether the session may put something into the stream, or ask about it, without disturbing a capture. */
bool tpw_touchable(struct tpw_session *s, const struct tpw_stream *stream);
/* Ends the capture that the stream is in as an operation that is not allowed does, and returns the driver's error: for
 * operations that cannot be captured. 0 when the stream does not capture. */
int32_t tpw_refuse_capture(struct tpw_session *s, const struct tpw_stream *stream);
/* The same for the stream behind a handle that was looked up already; sets *error. */
void tpw_refuse_capturing(struct tpw_session *s, CUstream native, int32_t *error);
/* The same for every capture in the current context. */
int32_t tpw_refuse_captures(struct tpw_session *s);
/* The graph that the stream captures into, NULL if it does not. What does not tell it is an error: nobody may then go on as if it did
 * not capture. */
CUgraph tpw_capturing_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error);
/* For an operation that points at an object, if the stream captures: it becomes a node, and the object stays in the driver as long
 * as that may follow it. */
int32_t tpw_capture_keeps(struct tpw_session *s, const struct tpw_stream *stream, uint32_t kind, uint64_t handle);
/* Who knows the graph: a node of it is going to point at the object. */
typedef int32_t tpw_node_captured(struct tpw_session *s, CUgraph graph, uint32_t kind, uint64_t handle);
TP_LIST(tpw_node_captured);
/* The program has ended a stream, which the driver may still have for a while: its capture ends. */
typedef void tpw_stream_leaves(struct tpw_session *s, const struct tpw_stream *stream);
TP_LIST(tpw_stream_leaves);
/* A stream is going: its capture ends. */
typedef void tpw_stream_gone(struct tpw_session *s, const struct tpw_stream *stream);
TP_LIST(tpw_stream_gone);

/* ---- callback.c ---- */
/* Makes a host function that runs at every launch of the graph; it ends with the graph and what was made of it. */
int32_t tpw_host_repeated(struct tpw_session *s, CUgraph graph, uint64_t token, CUhostFn *function, void **user);
/* The same for one that is needed as long as somebody keeps it. */
int32_t tpw_host_kept(struct tpw_session *s, uint64_t token, CUhostFn *function, void **user, struct tpw_kept **kept);
/* The client is told of the function at `place` of a mix (graph/graph_mix.c): which buffers it has to do with. */
struct tpw_mix;
struct tpg_callback_in;
typedef void tpw_host_told(struct tpw_mix *mix, uint32_t place, struct tpg_callback_in *message);
TP_LIST(tpw_host_told);
/* What a node of one is given for its function; the mix frees it. */
struct tpw_lasting *tpw_host_mixed(struct tpw_session *s, uint64_t token, struct tpw_mix *mix, uint32_t place);
/* What the driver is given for a host function, back again. */
uint64_t tpw_host_token(CUhostFn function, void *user);
/* Counts host functions that a launch into the stream will raise. */
void tpw_host_expect(struct tpw_session *s, struct tpw_stream *stream, uint32_t count);
void tpw_host_never(struct tpw_session *s, uint32_t count); /* the launch failed */
/* How many launches of a graph of this session may raise any. */
bool tpw_host_any(const struct tpw_session *s);
/* Sends the host functions that have come up; descriptor that becomes readable when one does. */
bool tpw_callbacks_run(struct tpw_session *s);
/* The same in the middle of a frame, and of the host functions only: nothing is let go that the frame may use. */
bool tpw_callbacks_tell(struct tpw_session *s);
/* A stream stands at a host function, or at a copy whose bytes come late, or will: it goes on by a frame of the client. */
bool tpw_callbacks_outstanding(const struct tpw_session *s);
bool tpw_hosts_outstanding(const struct tpw_session *s); /* at a host function */
/* Whether there is new work at which a wait inside the driver would find the executor: work that waits for the client's word
 * that a host function has run, or for a value that the client writes later. Both come behind the frames that this thread would no
 * longer read. */
bool tpw_work_stands(struct tpw_session *s);
int tpw_callbacks_fd(const struct tpw_session *s);
int32_t tpw_callbacks_open(struct tpw_session *s);
void tpw_callbacks_close(struct tpw_session *s);
/* Lasting things are made by the executor and end on whatever thread the driver chooses (tpw_lasting_gone), which only tells
 * the executor; the executor then tells the client and frees them. Nobody else writes them in between. */
struct tpw_lasting;
/* Something of the client, known to it by a token, whose end it must hear of; `object` is a handle that ends then, or 0. */
struct tpw_lasting *tpw_lasting_new(struct tpw_session *s, uint64_t token, uint64_t object);
/* A graph as a user of something that it points at (process/keep.c). */
struct tpw_lasting *tpw_lasting_kept(struct tpw_session *s, struct tpw_kept *kept);
/* The driver's destructor. */
void tpw_lasting_gone(void *lasting);
/* As a user object, to the graph alone; it ends where that fails. NULL is CUDA_ERROR_OUT_OF_MEMORY. */
int32_t tpw_lasting_give(struct tpw_session *s, CUgraph graph, struct tpw_lasting *lasting, struct tpw_kept *kept,
                         CUuserObject *object);

/* Somebody waits: for an answer, a word of the GPU, a host function. */
static inline void tpw_stops_streaming(struct tpw_session *s) {
    s->posts = 0;
    s->streams_since = 0;
}

/* ---- done.c ---- */
/* Writes the words that wait for the replies before them to be in the ring, once they are. */
void tpw_words_write(struct tpw_session *s);
/* The GPU has not come to the last mark yet, so the client waits for it, and its next frame comes right behind. The word is
 * the client's to write: a lie keeps its own session awake for a moment, or lets it sleep. */
bool tpw_mark_owed(const struct tpw_session *s);
/* Where the GPU sees a word of the client's slot, 0 with *error set when there is none. */
CUdeviceptr tpw_mark_address(struct tpw_session *s, const struct tp_frame *frame, uint32_t word, int32_t *error);
/* Has the word written when the stream has come here. */
int32_t tpw_mark(struct tpw_session *s, CUstream stream, CUdeviceptr address, uint32_t word, uint64_t value);

/* ---- kernel_bound.c ---- */
#define TPW_KERNEL_TIMEOUT 5 /* the exit code, which the supervisor tells in words */
struct tpw_lane {
    struct tpw_lane *next;
    _Atomic uint64_t *value;
    _Atomic uint64_t issued;      /* the last point */
    _Atomic uint8_t behind[2048]; /* what was put behind each; the driver takes about 1,024 commands */
    uint64_t seen, since;         /* of the thread that looks */
    uint32_t device;
};
/* The point has been put, and nothing behind it yet. */
static inline void tpw_lane_point(const struct tpw_word *word, uint64_t point) {
    if (TP_UNLIKELY(word->lane != NULL)) {
        atomic_store(&word->lane->behind[point % sizeof word->lane->behind], 0);
        atomic_store(&word->lane->issued, point);
    }
}

/* ---- print.c ---- */
/* From here on what the driver prints is the client's; before the driver is loaded. False with errno. */
bool tpw_print_open(void);
/* What the kernels of the current context have printed comes out. */
void tpw_print_now(struct tpw_session *s);
/* No context that ends has work any more: answers who waits for what that printed. */
void tpw_print_ended(struct tpw_session *s);

/* Asked before (`made` is false) and after a context is made for the client: how many bytes of the worker's limit it takes, which
 * its end gives back. Anything but 0: it may not be. */
typedef int32_t tpw_context_takes(struct tpw_session *s, uint32_t device, bool made, uint64_t *bytes);
TP_LIST(tpw_context_takes);

#endif
