/*
 * The session: one client's objects, contexts and pending completions, and the helpers that generated dispatch code expects.
 *
 * Everything here belongs to the executor thread, which follows the client's total order and never waits for the GPU; the
 * only other threads are the link's data threads, which see none of this. Arguments of operations come from a hostile client:
 * decoded and bounded by generated code, handles and device ranges checked by the helpers below before the driver sees them.
 */
#ifndef TPW_SESSION_H
#define TPW_SESSION_H

#include "tpg_driver.h"
#include "tpg_schema.h"
#include "tpw_link.h"
#include <string.h>
#include <tp_base.h>
#include <tp_device.h>
#include <tp_limits.h>
#include <tp_wire.h>

#define TPW_MAX_DEVICES 16
/* Returned by a hand-written operation that answers by itself, now or later: tpw_answer, tpw_conclude, tpg_answer_<operation>. */
#define TPW_LATER INT32_MIN

/* An object that the client named. The table describes every object completely enough to make it anew. */
struct tpw_object {
    uint64_t native;  /* the driver's handle; 0 when making it failed */
    int32_t error;    /* why making it failed, answered by every use */
    uint32_t id;      /* id of the client's handle, with its generation; 0 = slot is free */
    uint32_t context; /* id of the context it was made in */
    uint32_t kind;
    uint64_t owner;        /* handle of the module or library that it ends with, 0 = none */
    struct tpw_kept *kept; /* tpw_keep.h; NULL until a node of a graph points at it */
    void *record;          /* further description, owned by the family's file, freed by its destructor */
};

/* Indices are the client's to choose, so a table has memory only for pieces in which there was an object, and never moves one:
 * a frame costs one piece at most, and a session has so many of them (1.8 million objects side by side). */
#define TPW_PIECE_BITS 8u
#define TPW_PIECES_MAX 7168u /* of all kinds together, about 100 MiB */
struct tpw_table {
    struct tpw_object **pieces; /* 1 << (TP_INDEX_BITS - TPW_PIECE_BITS), each NULL or of 1 << TPW_PIECE_BITS objects */
};

struct ending;        /* context.c */
struct tpw_waits;     /* timeline.c */
struct tpw_callbacks; /* callback.c */
struct tpw_memory;    /* memory*.c */
struct tpw_lates;     /* copy_late.c */

struct tpw_session {
    struct tpw_link *link;
    struct tpw_segment *segment; /* tpw_segment.h; NULL when the client came over TCP */
    struct tpg_cuda_driver cuda;
    struct tpg_nvml_driver nvml;
    bool cuda_loaded, nvml_loaded, simulated;
    bool ended;    /* the executor leaves its loop */
    int exit_code; /* 0 the client left, 3 it broke the protocol */

    bool started;         /* cuInit was called */
    int32_t start_result; /* what it returned */
    int device_count;
    CUdevice devices[TPW_MAX_DEVICES];
    CUcontext primary[TPW_MAX_DEVICES]; /* retained by this session for its whole life once made, see context.c */

    struct tpw_table tables[TPG_KIND_LIMIT];
    uint32_t table_pieces; /* of all tables */
    uint32_t entered;      /* id of the client's context that is current for the driver on the executor; 0 = none */
    CUcontext entered_native;

    void *limits; /* limits page, NULL = none */
    uint32_t slot;
    struct tpw_waits *waits;
    struct tpw_stream *streams; /* every stream that work can be in, see stream.c */
    struct tpw_callbacks *callbacks;
    struct tpw_lates *lates;
    uint32_t late;  /* copies that stand, or will, until their bytes have come from the client */
    uint32_t hosts; /* counts the times that no host function and no such copy was outstanding; from 1 */
    bool full;      /* a stream that stands at a host function has about as many commands as the driver takes */
    struct tpw_memory *memory;
    struct tpw_capture *captures; /* under way, see capture.c */
    void *graph_nodes;            /* names of nodes, see graph.c */
    struct ending *endings;       /* contexts on their way out, see context.c */

    int32_t deferred_error; /* first failure of a post that has not been reported yet */
    uint64_t frames;        /* frames executed, for messages */
    bool traced;            /* the log has a line for each frame */
    uint32_t answered;      /* thread that was answered last, and with what: for these lines */
    int32_t answer;
    struct tpw_main *process;          /* main.c */
    struct tpw_scratch_block *scratch; /* of the operation under way, see scratch.c */
};

/* ---- what generated code expects ---- */

/* Makes the frame's context current for the driver. An unknown context gives CUDA_ERROR_CONTEXT_IS_DESTROYED; none is legal. */
int32_t tpw_enter(struct tpw_session *s, const struct tp_frame *frame);
/* The driver's handle behind a client's handle of `kind` (or of a kind that is taken in its place); special streams included.
 * On failure sets *error (if it is still 0) and returns 0. */
uint64_t tpw_native(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle, bool optional,
                    int32_t *error);
/* The same for `count` handles, in scratch memory. */
uint64_t *tpw_natives(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, const uint64_t *handles,
                      size_t count, int32_t *error);
/* A handle that hand-written code looks up or makes: of that kind (or one taken in its place), or *error is set. */
void tpw_check_name(uint32_t kind, uint64_t handle, bool optional, int32_t *error);
void tpw_check_names(uint32_t kind, const uint64_t *handles, size_t count, int32_t *error);
static inline void tpw_set(int32_t *error, int32_t value) { *error = *error ? *error : value; }
/* What a graph is to point at stays in the driver as long as that may follow it; `by` is its handle, that of a node of it, of
 * an executable graph or of a stream, which may capture; or 0: nobody keeps it. */
void tpw_keep(struct tpw_session *s, const struct tp_frame *frame, uint64_t by, uint32_t kind, uint64_t handle,
              int32_t *error);
/* The context behind a handle, or the current one for NULL; kept by a graph. */
CUcontext tpw_context_of(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, uint64_t by,
                         int32_t *error);
/* The client's handle of a native of `kind`, 0 if there is none. */
uint64_t tpw_known(struct tpw_session *s, uint32_t kind, uint64_t native);
/* Records the outcome of making an object: native handle, or the error that later uses answer. Returns the error. */
int32_t tpw_made(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle, uint64_t native,
                 int32_t error);
/* The same for an object that ends with `owner`: a node with its graph. */
int32_t tpw_made_in(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle,
                    uint64_t native, uint64_t owner, int32_t error);
void tpw_forget(struct tpw_session *s, uint32_t kind, uint64_t handle);
void tpw_check_device(struct tpw_session *s, int device, int32_t *error);
/* [address, address+size) must lie in memory that this session gave to its client. */
void tpw_check_range(struct tpw_session *s, uint64_t address, uint64_t size, int32_t *error);
/* The same for a word, which has to be aligned to its size. */
void tpw_check_word(struct tpw_session *s, uint64_t address, uint64_t size, int32_t *error);
/* Zeroed memory of count*unit bytes, at most TP_FRAME_MAX/2, valid until the operation ends. */
void *tpw_scratch(struct tpw_session *s, uint64_t count, uint64_t unit, int32_t *error);
void tpw_scratch_reset(struct tpw_session *s); /* at the beginning of each operation */
void tpw_scratch_free(struct tpw_session *s);
/* A client that breaks the format: log by name, end the session. */
void tpw_violation(struct tpw_session *s, const struct tp_frame *frame, const char *what);
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

/* ---- objects, for hand-written operations ---- */

/* Makes a context current for the session itself, whatever the frame says; none if the driver refuses it. */
void tpw_go_into(struct tpw_session *s, CUcontext native);
/* Makes a context current for the driver in which the session has something to do of its own. When the client has ended
 * it, and only its work is still going on, it has no name any more: no frame may then take it for its own. */
void tpw_visit(struct tpw_session *s, CUcontext native, uint32_t context);

/* The object itself, NULL if there is none of that kind (or one taken in its place) under the handle. */
struct tpw_object *tpw_object(struct tpw_session *s, uint32_t kind, uint64_t handle);
/* Every live object of a kind, in slot order: start with *at = 0, ends with NULL. */
struct tpw_object *tpw_next_object(struct tpw_session *s, uint32_t kind, uint32_t *at);
/* A stream that work can be in: one the client made, the legacy stream of a context, a thread's default stream. */
struct tpw_stream {
    struct tpw_stream *next;
    CUstream native;
    CUcontext context;
    uint32_t context_id;
    uint32_t device;          /* index of its context's */
    uint32_t thread;          /* of a per-thread default stream, else 0 */
    uint32_t pending;         /* waits for it that have not completed */
    uint32_t hosts;           /* s->hosts when a host function was last queued here: it may stand there */
    uint32_t behind;          /* commands queued behind that host function, about */
    struct tpw_word *word;    /* where the GPU writes how far it has come; NULL before the first point */
    uint64_t issued, reached; /* points of its timeline: the last one, and the last one known to be done */
    uint64_t awaited;         /* the oldest point that somebody waits for, 0 = none */
    bool dirty;               /* work was put in since its last point */
    bool dying;               /* destroyed by the client; ends when its last wait has completed */
};
/* The stream behind a frame's handle: 0 and 1 legacy, 2 the calling thread's own default stream. Marks it dirty. */
struct tpw_stream *tpw_stream_of(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error);
/* The same for who puts nothing in yet: does not mark it. */
struct tpw_stream *tpw_stream_find(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle,
                                   int32_t *error);
CUstream tpw_stream(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, int32_t *error);
/* The record of a native that one of these two gave, NULL if there is none. Its context need not be the current one: copies and
 * waits are allowed in any stream. Only the legacy stream has the same native in each context, and means the current one's. */
struct tpw_stream *tpw_stream_native(struct tpw_session *s, CUstream native);
/* Makes the stream's own context the current one, for what the session itself puts into it. */
void tpw_enter_stream(struct tpw_session *s, const struct tpw_stream *stream);
/* Gives the driver's stream back and forgets it; called when no wait is left for a stream that the client destroyed. A
 * wait for the whole context may still put one into a dying stream, so this is not the end of the destroying call. */
void tpw_stream_end(struct tpw_session *s, struct tpw_stream *stream, int32_t error);
/* Waits while a stream is about full behind a host function; false when the session ends. Between the commands of one operation. */
bool tpw_hold_on(struct tpw_session *s);
/* Waits while that says so: what comes is held back, but for what lets host functions and copies go on. False when the session
 * ends. Of its frame an operation has only what it copied before. */
typedef bool tpw_condition(struct tpw_session *s, void *what);
bool tpw_hold_while(struct tpw_session *s, tpw_condition *stands, void *what);
/* Counts commands in a stream that may stand at a host function. */
void tpw_stream_count(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands);
/* Asks the driver whether a stream is full still; visits its context. */
bool tpw_streams_full(struct tpw_session *s);
/* The same for a stream that may stand at a host function or at a copy whose bytes come late, full or not. */
bool tpw_streams_stand(struct tpw_session *s);
/* Whether so many more would leave it short of full, should it stand. */
bool tpw_stream_has_room(struct tpw_session *s, struct tpw_stream *stream, uint32_t commands);
/* Ends all streams of a context that is going, or all of them (context 0). */
void tpw_streams_gone(struct tpw_session *s, uint32_t context);

/* ---- completion ----
 * `done` runs on the executor when everything that was queued in `stream` before this call has finished (error 0) or can
 * no longer finish (the context's error). Never waits. */
typedef void tpw_done(struct tpw_session *s, void *what, int32_t error);
int32_t tpw_when_done(struct tpw_session *s, CUstream stream, tpw_done *done, void *what); /* a stream of tpw_stream */
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
/* Gives a stream's word back, when the stream is forgotten. */
void tpw_timeline_end(struct tpw_session *s, struct tpw_stream *stream);
/* Ends every wait in a context that is going (0 = all) with an error. */
void tpw_waits_end(struct tpw_session *s, uint32_t context, int32_t error);
/* A completion is running. */
bool tpw_completing(const struct tpw_session *s);
/* Number of waits not completed. */
size_t tpw_pending(const struct tpw_session *s);

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

/* ---- process ---- */
/* The driver's library (or NVML's), opened by the path of the command line; NULL with a log line. main.c */
void *tpw_open_library(struct tpw_session *s, bool nvml);
uint32_t tpw_client_pid(const struct tpw_session *s);
/* callback.c: sends the host functions that have come up; descriptor that becomes readable when one does. */
bool tpw_callbacks_run(struct tpw_session *s);
/* A stream stands at a host function, or at a copy whose bytes come late, or will: it goes on by a frame of the client. */
bool tpw_callbacks_outstanding(const struct tpw_session *s);
bool tpw_hosts_outstanding(const struct tpw_session *s); /* at a host function */
int tpw_callbacks_fd(const struct tpw_session *s);
int32_t tpw_callbacks_open(struct tpw_session *s);
/* Those of a context that has ended, which the driver will not call. */
void tpw_callbacks_context_gone(struct tpw_session *s, uint32_t context);
void tpw_callbacks_close(struct tpw_session *s);
/* timeline.c */
bool tpw_waits_open(struct tpw_session *s);     /* once, before cuInit; false without memory */
int32_t tpw_waits_ready(struct tpw_session *s); /* there is a word for the next stream */
/* main.c: takes what the supervisor has sent (data connections, the end). */
void tpw_control_run(struct tpw_session *s);

/* ---- families ---- */
int32_t tpw_start_driver(struct tpw_session *s); /* device.c: cuInit and the device list, once */
/* device.c: an answer to a question about an attribute or a limit: its value, or that there is none. Anything else says that the
 * driver could not answer, and is an error of the call that asked. */
bool tpw_about_the_question(int32_t result);
int32_t tpw_primary(struct tpw_session *s, int index,
                    CUcontext *out); /* context.c: retains the primary context, once */
/* context.c: makes a context current that lasts as long as the session, for what the session makes for itself while the client's
 * context may be a created one, with which its pinned memory would end. What was current is so again after the second. */
bool tpw_home_enter(struct tpw_session *s);
void tpw_home_leave(struct tpw_session *s);
/* objects.c: ends waits, streams and objects of a context; to be called before the driver destroys it. Its objects answer
 * CUDA_ERROR_CONTEXT_IS_DESTROYED from now on. */
void tpw_context_gone(struct tpw_session *s, uint32_t context);
/* context.c: index of a context's device; 0 for one that is not there. */
uint32_t tpw_context_device(struct tpw_session *s, uint32_t context);
int32_t tpw_memory_open(struct tpw_session *s); /* memory.c: at the first primary context */
void tpw_memory_close(struct tpw_session *s);
/* memory.c: makes [address, address+size) known as memory of the client (module globals, mapped twins), or unknown. */
void tpw_memory_publish(struct tpw_session *s, uint64_t address, uint64_t size);
void tpw_memory_retract(struct tpw_session *s, uint64_t address);
/* memory_staging: takes an uploaded body out of a transfer; NULL with *error set. For images; the caller frees. */
unsigned char *tpw_take_upload(struct tpw_session *s, uint64_t transfer, size_t size, int32_t *error);

#endif
