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
#include <tp_quota.h>
#include <tp_register.h>
#include <tp_segment.h>
#include <tp_wire.h>

/* Hands an error on, of the driver's or of ours. */
#define TPW_TRY(call)                                                                                                  \
    do {                                                                                                               \
        int32_t tried = (int32_t)(call);                                                                               \
        if (TP_UNLIKELY(tried)) {                                                                                      \
            return tried;                                                                                              \
        }                                                                                                              \
    } while (0)

#define TPW_MAX_DEVICES 16
/* Returned by a hand-written operation that answers by itself, now or later: tpw_answer, tpw_conclude, tpg_answer_<operation>. */
#define TPW_LATER INT32_MIN

/* An object that the client named. The table describes every object completely enough to make it anew. */
struct tpw_object {
    uint64_t native;  /* the driver's handle; 0 when making it failed */
    int32_t error;    /* why making it failed, answered by every use */
    uint32_t id;      /* id of the client's handle, with its generation; 0 = this place is free */
    uint32_t context; /* id of the context it was made in */
    uint32_t kind;
    uint64_t owner;        /* handle of the module or library that it ends with, 0 = none */
    struct tpw_kept *kept; /* NULL until a node of a graph points at it */
    void *record;          /* further description, owned by the family's file, freed by its destructor */
};

/* Indices are the client's to choose, so a table has memory only for pieces in which there was an object, and never moves one:
 * a frame costs one piece at most, and a session has so many of them (1.8 million objects side by side). */
#define TPW_PIECE_BITS 8u
#define TPW_PIECES_MAX 7168u /* of all kinds together, about 100 MiB */
struct tpw_table {
    struct tpw_object **pieces; /* 1 << (TP_INDEX_BITS - TPW_PIECE_BITS), each NULL or of 1 << TPW_PIECE_BITS objects */
};

struct ending;        /* context_end.c */
struct tpw_waits;     /* timeline.c */
struct tpw_callbacks; /* callback.c */
struct tpw_memory;    /* tpw_memory.h */
struct tpw_lates;     /* copy_late.c */
struct tpw_question;  /* control.c */

struct tpw_session {
    struct tpw_link *link;
    struct tpw_segment *segment; /* NULL when the client came over TCP */
    struct tpg_cuda_driver cuda;
    struct tpg_nvml_driver nvml;
    bool cuda_loaded, nvml_loaded, simulated;
    bool ended;    /* the executor leaves its loop */
    bool spoken;   /* the client has sent a frame */
    int exit_code; /* 0 the client left, 3 it broke the protocol */

    bool started;         /* cuInit was called */
    int32_t start_result; /* what it returned */
    bool share_failed;    /* of starting the driver, sm_share.c did */
    int device_count;
    CUdevice devices[TPW_MAX_DEVICES];
    int32_t broken[TPW_MAX_DEVICES];    /* the error that broke it for the rest of the process, 0 = none is known */
    CUcontext primary[TPW_MAX_DEVICES]; /* retained by this session for its whole life once made, see context.c */

    struct tpw_table tables[TPG_KIND_LIMIT];
    uint32_t table_pieces; /* of all tables */
    uint32_t entered;      /* id of the client's context that is current for the driver on the executor; 0 = none */
    CUcontext entered_native;

    const struct tp_quota *quota; /* the quota page, NULL = none */
    uint64_t kernel_timeout;      /* seconds that a kernel may run, 0 = as long as it likes */
    struct tpw_waits *waits;
    struct tpw_stream *streams; /* every stream that work can be in, see stream.c */
    struct tpw_callbacks *callbacks;
    struct tpw_lates *lates;
    uint32_t late;        /* copies that stand, or will, until their bytes have come from the client */
    uint32_t hosts;       /* counts the times that no host function and no such copy was outstanding; from 1 */
    uint32_t twins;       /* mapped host memory that kernels may have written: carried across before what completes */
    uint32_t pools_freed; /* a bit for each device: the driver has not noticed that memory of its pools is free */
    bool words;           /* a stream may stand at a word that the client has written later */
    bool graph_words;     /* and one in which a graph is launched */
    bool full;            /* a stream that stands at a host function has about as many commands as the driver takes */
    struct tpw_memory *memory;
    struct tpw_capture *captures; /* under way, see capture.c */
    void *graph_nodes;            /* names of nodes, see graph.c */
    struct ending *endings;       /* contexts on their way out, see context_end.c */
    uint32_t unfinished;          /* of them, those that may still have work */

    int32_t deferred_error;  /* first failure of a post that has not been reported yet */
    uint64_t frames;         /* frames executed */
    uint64_t waited_for;     /* of these, calls */
    bool contexts_changed;   /* the client has made one, or ended one, since this was last told */
    uint64_t number;         /* of the one under way, as the client counts; for messages */
    bool inside;             /* others were executed in the middle of the frame under way, or it has begun a trace */
    bool traced;             /* the log has a line for each frame, or the client a record */
    struct tpw_trace *trace; /* stream/trace.c; NULL: this client has not asked */
    uint32_t calls;          /* frames whose answers clients wait for */
    uint32_t posts;          /* since the last of these, or of the words that clients wait for */
    uint64_t streams_since;  /* when that was, or a little later; 0: nobody has looked at the clock yet */
    uint32_t answered;       /* thread that was answered last, and with what: for these lines */
    int32_t answer;
    struct tpw_main *process;       /* main.c */
    struct tpw_question *questions; /* that the supervisor has yet to answer */
    uint32_t question_count, last_question;
    int control, events; /* the supervisor's socket; an epoll over it and the callbacks' eventfd */
    const char *driver_path, *nvml_path;
    uint32_t client_pid;
    struct tpw_scratch_block *scratch; /* of the operation under way, see scratch.c */
};

/* ---- what generated code expects ---- */

/* Makes the frame's context current for the driver. An unknown context gives CUDA_ERROR_CONTEXT_IS_DESTROYED; none is legal. */
int32_t tpw_enter(struct tpw_session *s, const struct tp_frame *frame);
/* A handle that hand-written code looks up or makes: of that kind (or one taken in its place), or *error is set. */
void tpw_check_name(uint32_t kind, uint64_t handle, bool optional, int32_t *error);
void tpw_check_names(uint32_t kind, const uint64_t *handles, size_t count, int32_t *error);
static inline void tpw_set(int32_t *error, int32_t value) { *error = *error ? *error : value; }
/* The client's handle of a native of `kind`, 0 if there is none. */
uint64_t tpw_known(struct tpw_session *s, uint32_t kind, uint64_t native);
/* The same for one that the driver has told and that lives in `owner`: without a name it gets `fresh`. */
int32_t tpw_told(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t fresh, uint64_t native,
                 uint64_t owner, int32_t error, uint64_t *told);
/* Records the outcome of making an object: native handle, or the error that later uses answer. Returns the error. */
int32_t tpw_made(struct tpw_session *s, const struct tp_frame *frame, uint32_t kind, uint64_t handle, uint64_t native,
                 int32_t error);
void tpw_forget(struct tpw_session *s, uint32_t kind, uint64_t handle);
void tpw_forget_parts(struct tpw_session *s, uint32_t kind, uint64_t handle); /* only what ends with it */
void tpw_check_device(struct tpw_session *s, int device, int32_t *error);
/* ---- token.c ----
 * Structs of the driver that the client may have but not read: what it holds is a token. */
/* The whole struct of a kind behind a token; false for a token that names none. */
bool tpw_token_take(const char *form, const void *token, size_t room, void *whole, size_t size);
/* A token for a struct, zeroed behind it; an error when there are too many. */
void tpw_token_give(const char *form, const void *whole, size_t size, void *token, size_t room, int32_t *error);
/* Zeroed memory of count*unit bytes, at most TP_FRAME_MAX/2, valid until the operation ends. */
void *tpw_scratch(struct tpw_session *s, uint64_t count, uint64_t unit, int32_t *error);
void tpw_scratch_reset(struct tpw_session *s); /* at the beginning of each operation */
void tpw_scratch_free(struct tpw_session *s);
/* A client that breaks the format: log by name, end the session. */
void tpw_violation(struct tpw_session *s, const struct tp_frame *frame, const char *what);
/* ---- objects, for hand-written operations ---- */

/* Makes a context current for the session itself, whatever the frame says; none if the driver refuses it. */
void tpw_go_into(struct tpw_session *s, CUcontext native);
/* Makes a context current for the driver in which the session has something to do of its own. When the client has ended
 * it, and only its work is still going on, it has no name any more: no frame may then take it for its own. */
void tpw_visit(struct tpw_session *s, CUcontext native, uint32_t context);

/* The object itself, NULL if there is none of that kind (or one taken in its place) under the handle. */
struct tpw_object *tpw_object(struct tpw_session *s, uint32_t kind, uint64_t handle);
/* Its record, NULL without one. */
void *tpw_record(struct tpw_session *s, uint32_t kind, uint64_t handle);
/* Every live object of a kind, in the order of places: start with *at = 0, ends with NULL. */
struct tpw_object *tpw_next_object(struct tpw_session *s, uint32_t kind, uint32_t *at);

/* ---- control.c: the channel to the supervisor, docs/wire-format.md 2 ---- */
enum tpw_packet_type {
    TPW_ADOPT = 1,
    TPW_DATA = 2,
    TPW_WARM = 3,
    TPW_SHARED = 4,
    TPW_IMPORTED = 5,
    TPW_PAY = 6,
    TPW_RELEASED = 7,
    TPW_LISTED = 8,
    TPW_READY = 16,
    TPW_FAILED = 17,
    TPW_GONE = 18,
    TPW_SPOKEN = 19,
    TPW_SHARE = 20,
    TPW_IMPORT = 21,
    TPW_LEAVE = 22,
    TPW_PAID = 23,
    TPW_LIST = 24,
    TPW_GROWN = 25,
    TPW_IMAGE = 26,
};
enum tpw_image_news { TPW_IMAGE_KEEP, TPW_IMAGE_USED, TPW_IMAGE_DAMAGED };
/* What sessions share, as the supervisor keeps it. */
struct tpw_shared {
    unsigned char handle[64]; /* what programs pass around */
    uint64_t block, offset, size;
    uint32_t device; /* index, the same in all sessions of a worker */
    int32_t error;   /* IMPORTED: why not */
    uint32_t kind, zero;
    unsigned char native[64]; /* the driver's own handle, of an event or a pointer */
};
enum tpw_shares { TPW_SHARES_MEMORY, TPW_SHARES_EVENT, TPW_SHARES_PHYSICAL, TPW_SHARES_POOL, TPW_SHARES_POINTER };
/* A process of the client's machine and tenant that has a context on the device that was asked about. */
struct tpw_process {
    uint32_t pid;     /* there */
    uint32_t session; /* the process that serves it, here */
    uint64_t bytes;   /* of the device's memory that it has reserved */
};
#define TPW_PROCESSES 16u /* in one packet */
struct tpw_packet {
    uint32_t type, argument;
    uint64_t session, key, value;
    char text[224];
    union {
        unsigned char greeting[256];
        struct tpw_shared shared;
        struct tpw_process processes[TPW_PROCESSES];
        unsigned char devices[TPW_MAX_DEVICES][16]; /* READY: what the driver calls them */
    } body;
};
_Static_assert(sizeof(struct tpw_packet) == TP_CONTROL_SIZE, "docs/wire-format.md");
/* With a descriptor, unless that is -1; it stays the caller's. False with a log line. */
bool tpw_control_send(const struct tpw_session *s, const struct tpw_packet *packet, int fd);
void tpw_leave_share(const struct tpw_session *s, uint64_t number, uint32_t grants); /* 0: it has been freed */
/* A question of the client's that the supervisor is to answer. */
struct tpw_question {
    struct tpw_question *next;
    uint32_t number, context; /* context: that in which it was asked */
    struct tp_frame frame;
    void (*answered)(struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet,
                     int fd);
    void *what; /* whose memory it is, `answered` knows */
    uint64_t value;
};
/* Asks it, with a descriptor unless that is -1. TPW_LATER, and `answered` answers the client; or an error. */
int32_t tpw_ask(struct tpw_session *s, const struct tpw_question *question, struct tpw_packet *packet, int fd);
/* In the answer of an operation that says why it is refused: what the supervisor said. */
#define TPW_SAY_WHY(out, packet)                                                                                       \
    ((out).refused = (packet)->body.shared.error ? (packet)->body.shared.error : CUDA_ERROR_INVALID_HANDLE,            \
     (out).why = (packet)->text, (out).why_size = strnlen((packet)->text, sizeof(packet)->text))
/* What main.c reads: an answer, or news of what is shared. The descriptor is closed here. */
void tpw_control_told(struct tpw_session *s, const struct tpw_packet *packet, int fd);
typedef void tpw_share_news(struct tpw_session *s, const struct tpw_packet *packet);
TP_LIST(tpw_share_news);

/* ---- device.c ---- */
/* The driver is about to be started: what works with it gets its memory, or says why not. */
typedef int32_t tpw_driver_starts(struct tpw_session *s);
TP_LIST(tpw_driver_starts);
int32_t tpw_start_driver(struct tpw_session *s); /* cuInit and the device list, once */
/* An answer to a question about an attribute or a limit: its value, or that there is none. Anything else says that the
 * driver could not answer, and is an error of the call that asked. */
bool tpw_about_the_question(int32_t result);
/* Describes a device for the client, as far as a context of it exists. */
int32_t tpw_device_describe(struct tpw_session *s, int index, struct tp_device_description *what);
/* The driver's library (or NVML's), opened by the path of the command line; NULL with a log line. */
void *tpw_open_library(struct tpw_session *s, bool nvml);

/* ---- context.c ---- */
/* Record of a context object: plain memory, freed with the object. */
struct tpw_context {
    int device; /* index */
    bool primary;
    CUgreenCtx green; /* of a green context */
    uint32_t home;    /* id of the primary one that it is a part of; 0 if it stands for a created one (sm_share.c) */
    bool limits_changed;
    size_t fresh[CU_LIMIT_MAX]; /* before the client changed the first of them */
    bool has[CU_LIMIT_MAX];     /* the driver has such a limit */
    uint64_t charged;           /* bytes of the worker's memory limit that it and the client's limits hold */
};
/* The client's flags that mean something here. How its threads wait is its own affair, and core dumps would be written on
 * the worker's disk. */
#define TPW_FLAGS_FORWARDED ((unsigned)CU_CTX_LMEM_RESIZE_TO_MAX)
/* Names a context for the client, or keeps the error under its name. */
int32_t tpw_context_made(struct tpw_session *s, const struct tp_frame *frame, uint64_t handle, CUcontext native,
                         int device, bool primary, int32_t error);
/* Retains the primary context, once. */
int32_t tpw_primary(struct tpw_session *s, int index, CUcontext *out);
/* Makes a context current that lasts as long as the session, of a device that is not broken, for what the session makes for itself while the client's
 * context may be a created one, with which its pinned memory would end. What was current is so again after the second. */
bool tpw_home_enter(struct tpw_session *s);
void tpw_home_leave(struct tpw_session *s);
/* Id of the context that memory, modules, events and arrays belong to that are made in this one: of a green context the
 * primary one, else itself. */
uint32_t tpw_home_of(struct tpw_session *s, uint32_t context);
/* Index of a context's device; 0 for one that is not there. */
uint32_t tpw_context_device(struct tpw_session *s, uint32_t context);
/* A primary context was made, and is current: what works in it gets ready, or says why not. */
typedef int32_t tpw_primary_made(struct tpw_session *s);
TP_LIST(tpw_primary_made);

/* ---- sm_share.c ---- */
/* The driver has started: what is left of its devices under TF_CUDA_SM_PERCENT_LIMIT is worked out. */
int32_t tpw_sm_share_begin(struct tpw_session *s);
/* The client's part of a device, for a green context, and how many multiprocessors it has. NULL and 0 without a limit. */
CUdevResourceDesc tpw_sm_share(const struct tpw_session *s, int index);
int tpw_sm_count(const struct tpw_session *s, int index);

/* ---- broken.c ---- */
/* An error that the driver gave: whether it is one that broke a device, of which the client is told first. */
bool tpw_breaks(struct tpw_session *s, int32_t error);
/* The error that broke the device, by its index: 0 as long as the driver gives none. */
int32_t tpw_device_broken(struct tpw_session *s, int index);

/* ---- the end of a context, for those who register: told in this order ---- */
struct tpw_gone {
    uint32_t id;
    CUcontext native;
    const struct tpw_context *context;
    bool stays; /* the driver's context is not destroyed: a primary one, or one that nodes of graphs point at */
};
/* Its work is over, and it is still there: what lies in other contexts' reach ends. Each goes into the context that it needs;
 * which one is current afterwards is open. */
typedef void tpw_context_ends(struct tpw_session *s, const struct tpw_gone *gone);
TP_LIST(tpw_context_ends);
/* Waits in it and its streams end; its objects lose their natives next (tpw_objects_gone). */
typedef void tpw_context_gone(struct tpw_session *s, const struct tpw_gone *gone);
TP_LIST(tpw_context_gone);
/* What is left in the driver's context ends, which is current. */
typedef void tpw_context_left(struct tpw_session *s, const struct tpw_gone *gone);
TP_LIST(tpw_context_left);
/* All that was in it is gone. The driver's context is destroyed, or, if it stays, current. */
typedef void tpw_context_over(struct tpw_session *s, const struct tpw_gone *gone);
TP_LIST(tpw_context_over);
/* Tells that the context is gone, and takes the natives of its objects: they answer CUDA_ERROR_CONTEXT_IS_DESTROYED from now on. */
void tpw_objects_gone(struct tpw_session *s, const struct tpw_gone *gone);

/* ---- keep.c ----
 * Who keeps what alive: images, contexts and events of the driver that nodes of graphs point at. The driver does not count
 * them. A node whose module, library, context or event has ended points at nothing, and the driver follows it (580.159:
 * cloning such a graph ends the process). So what the client ends stays in the driver until nothing points at it; for the
 * client it is gone at once, with its handles and its memory. */
/* What a node points at. Its users are graphs (by a user object of the driver, which clones, child graphs, executable graphs
 * and launches under way inherit, however deep), executable graphs with a changed node, and whatever lies inside it. */
struct tpw_kept {
    struct tpw_kept *inside; /* the context of a module or an event; NULL: none that could end */
    uint64_t native;
    CUcontext context; /* of the same */
    uint32_t kind, users;
    struct tpw_taken *taken; /* of an image that the client has unloaded: what is charged for it */
    bool over;               /* the client has ended it: it ends with its last user */
};
/* The kinds of those that are no objects: an address of a graph's memory, a host function of an executable graph, all that are mixed. */
enum { TPW_KEPT_MEMORY = 1000, TPW_KEPT_HOST, TPW_KEPT_MIX };

/* The kept of an object; NULL without an error for one that never ends, such as a primary context. */
struct tpw_kept *tpw_kept_of(struct tpw_session *s, struct tpw_object *object, int32_t *error);
void tpw_keep_use(struct tpw_kept *kept);
/* One user less; what is over then ends. */
void tpw_let_go(struct tpw_session *s, struct tpw_kept *kept);
/* The client ends an object, or its context does: true if it is kept, and the driver's is not to be touched. */
bool tpw_kept_on(struct tpw_object *object);
/* The same for a kept that its object no longer has. */
bool tpw_kept_over(struct tpw_kept *kept);
/* The driver's is gone. */
void tpw_kept_ended(struct tpw_session *s, struct tpw_kept *kept);
/* Nothing points any more at what the client has ended: whoever has objects of that kind ends this one, and says true. */
typedef bool tpw_unkept(struct tpw_session *s, struct tpw_kept *kept);
TP_LIST(tpw_unkept);

/* ---- segment_map.c, segment_pin.c ----
 * The worker's shared segment as a session sees it: mapped at start, registered with the driver as soon as there is a context.
 * The mapping lasts as long as the process. Memory below `base` is written by clients of this worker at any time; `owners` only
 * by the worker's own processes. */
/* Slots, run, the first memory of the arena, and what is then left of it before, between and behind these. */
#define TPW_PIECES 6u
struct tpw_piece {
    uint64_t offset, size;
};

struct tpw_segment {
    unsigned char *base;
    uint64_t size;
    uint64_t device; /* the GPU's address of base: the same, or nothing inside has one address for everybody */
    void *owners;
    uint32_t slot;                /* of the client that is served */
    struct tp_run run;            /* and its part of the arena */
    uint32_t word;                /* of the mark that the GPU was given last */
    uint64_t value;               /* and what it writes there, 0 before the first */
    uint64_t owed[TP_DONE_WORDS]; /* what the executor is to write there, 0 = nothing */
    uint32_t owed_count;
    struct tpw_piece pieces[TPW_PIECES]; /* what is pinned; the first begins at base */
    uint32_t piece_count;
    bool asked;      /* the client has memory in the arena */
    bool registered; /* the GPU's addresses of all pieces are those of the memory */
    int32_t error;   /* why the driver does not take it */
};

/* Maps the segment and the owners table; both descriptors are closed. False with a log line. */
bool tpw_segment_map(struct tpw_segment *segment, int fd, uint64_t size, int owners);
/* Makes the driver pin what the client's frames need of s->segment, or all of it while nobody is served; once, in a current
 * context. While nobody is served it succeeds and keeps the error for the client that comes over the segment: others do not need it. */
int32_t tpw_segment_register(struct tpw_session *s);
/* Memory of the arena for the client, pinned: its offset, 0 when there is none. Needs a context. */
uint64_t tpw_segment_take(struct tpw_session *s, uint64_t size);

#endif
