/*
 * What the files of the client's connection share; nobody outside native/client/core includes it.
 *
 * One struct tp_conn per process, never freed: threads of the program may be inside it until the process ends. Who writes
 * what is said at each group of fields. `lost` ends everything: it is set once and every sleeper is woken after it.
 * Lock order: append, then transfers; send, receive, sleepers and threads are taken with nothing held but append (send never).
 */
#ifndef TP_CONN_INTERNAL_H
#define TP_CONN_INTERNAL_H

#include "seat.h"
#include "tp_config.h"
#include "tp_conn.h"
#include "tp_wait.h"

#include <pthread.h>
#include <tp_layouts.h>
#include <tp_secure.h>

#define TPC_RING_SIZE (4u << 20) /* launches of 160 to 400 bytes: about 15,000 ahead of the socket */
#define TPC_INPUT_SIZE (TP_FRAME_MAX + (256u << 10))
#define TPC_NO_NEWS 1000000000u /* sleepers look for a silent peer once a second */
#define TPC_LAST_WORDS_NS 500000000u
/* A frame that something is to come back for is among so many behind the word of it, whoever else sends meanwhile. */
#define TPC_EXPECTED 8

/* ---- threads.c: one caller for each thread of the client; they are reused, never freed ---- */
enum tpc_caller_state {
    TPC_IDLE,
    TPC_WAITING,  /* awaits a reply, awake */
    TPC_SLEEPING, /* awaits a reply in a futex and stands in the sleepers list */
    TPC_LEAD,     /* was woken to become the one that reads the socket, or because its reply is gated now */
    TPC_DONE,
    TPC_LOST,
};
/* A frame that says that something is complete and waits for the downloads that it counts. */
struct tpc_held {
    struct tpc_held *next;
    uint64_t transfers;
    struct tpc_caller
        *caller; /* whose reply this is, complete but for that; NULL: a message, whose body lies behind this */
    uint16_t op;
    uint32_t size;
};
struct tpc_caller {
    struct tp_thread thread; /* first: tp_thread_self hands out a pointer to it */
    _Atomic uint32_t state;  /* enum tpc_caller_state; DONE releases *reply to the waiting thread */
    _Atomic bool expects;    /* a reply may come; whoever exchanges it to false is the one to deliver */
    _Atomic bool gated;      /* the reply is here but waits for downloads */
    bool listed;             /* under sleepers_lock */
    struct tpc_held held;    /* the reply while it is gated */
    struct tp_reply *reply;
    bool refused;         /* the worker has not the operation that it reserved last */
    tp_reply_taker *take; /* of the reply's body; NULL: it is copied into `reply` */
    void *what;
    struct tpc_caller *next, *previous; /* sleepers list */
    struct tpc_caller *next_free;       /* under threads.lock */
};
struct tpc_caller *tpc_caller_self(void);
struct tpc_caller *tpc_caller_find(uint32_t number); /* NULL: no thread ever had that number */
uint32_t tpc_caller_count(void);                     /* numbers 1 … count have been given out */
void tpc_threads_fork_prepare(void);
void tpc_threads_fork_done(void);
void tpc_threads_fork_child(void);

/* ---- transfers ---- */
struct tpc_upload {
    uint64_t number;
    const unsigned char *source;
    size_t size, dealt, sent, chunk;
    struct tpc_upload *next;
};
struct tpc_download {
    uint64_t number;
    unsigned char *destination;
    size_t size, received;
    bool cancelled;  /* its bytes are thrown away */
    uint32_t busy;   /* threads that write to destination at this moment */
    uint32_t handed; /* place in the order of hand-overs, 0 until known */
    struct tpc_download *next, *previous;
};

/* Memory of the program that is read later on behalf of a copy. */
struct tpc_source {
    uint64_t token;
    const void *start;
    size_t size;
    struct tpc_source *next;
};

struct tpc_data {
    struct tp_conn *conn;
    int socket;
    struct tp_secure *secure; /* NULL: plain */
    uint32_t index;
    unsigned char *sink; /* bytes of cancelled transfers go here */
};

struct tp_conn {
    int control;
    struct tp_secure *secure; /* NULL: plain */
    uint64_t session_id, session_key;
    uint32_t data_max;
    struct tp_matched *skew; /* NULL: the worker was built from the same description */
    struct tp_endpoint endpoint;
    char peer[320]; /* host and port for sentences */
    uint64_t spin_ns;
    /* After so many unsent frames a commit looks closer: TF_MAX_CACHE_REQUEST_COUNT, or 0 while frames are traced, so that this
     * costs the others nothing. */
    uint32_t look_after;
    uint32_t cache_max;            /* TF_MAX_CACHE_REQUEST_COUNT */
    _Atomic uint32_t lost;         /* enum tp_status once lost; store releases nothing, it only ends loops */
    _Atomic uint32_t told;         /* the sentence that says why has left */
    _Atomic bool stopped, looking; /* the session, as far as is known; somebody asks */

    /* Appenders, under append. `head` releases the frame bytes to whoever holds send. */
    _Alignas(64) struct tp_lock append;
    struct tpc_seat *seat;         /* over shared memory, else NULL; the ring is then the slot's command ring */
    _Atomic uint64_t *shared_head; /* seat: where the session looks for `head` */
    unsigned char *ring;           /* ring_size bytes mapped twice in a row, so that every frame is contiguous */
    uint64_t ring_size;            /* a power of two */
    int wake_listener;             /* seat: the frame to be committed expects bytes that nobody may wait for */
    uint64_t at;                   /* = head */
    uint64_t room_to;              /* frames that end up to here need no look at the ring, nor at what was answered */
    _Atomic uint64_t
        answered;      /* the session had executed everything up to here; a value that goes back costs a question */
    uint32_t reserved; /* size of the frame between reserve and commit */
    uint64_t next_transfer;
    int wake_uploads; /* chunks that the frame to be committed has queued */
    _Atomic uint64_t head;
    _Atomic uint64_t appended_frames;
    _Atomic uint64_t waited_frame; /* the last that something is to come back for: an answer, bytes, a host function */

    /* Whoever holds send. `tail` releases ring space to appenders. */
    _Alignas(64) struct tp_lock send;
    _Atomic uint64_t tail;
    _Atomic uint64_t sent_frames;
    _Atomic uint32_t
        sender_sleeps; /* enum tp_bell_state; pairs, seq_cst, with head: store one, then look at the other */
    _Atomic uint32_t space_waiters;
    _Atomic uint32_t space_news;

    /* The reading side: input is touched only by the holder of receive. */
    _Alignas(64) struct tp_lock receive;
    unsigned char *input; /* TPC_INPUT_SIZE bytes, pages appear when touched */
    size_t input_start, input_end;
    uint32_t silent_s; /* for so long nothing has come */
    bool last_words;   /* the session has ended: nothing else is heard of it */
    struct tp_lock sleepers_lock;
    struct tpc_caller *sleepers;
    _Atomic uint32_t sleepers_count;
    _Atomic uint32_t callers;  /* threads that wait for a reply and would read for it */
    _Atomic int32_t listening; /* > 0: something may come that nobody waits for */
    _Atomic bool always_listening;
    _Atomic uint32_t listener_parked;

    /* Transfers, under transfers. */
    _Alignas(64) struct tp_lock transfers;
    struct tpc_upload *uploads, *uploads_end; /* in commit order; not yet wholly sent */
    struct tpc_upload *dealing;               /* first with bytes not yet dealt to a data connection */
    struct tpc_download *downloads, *downloads_end;
    struct tpc_held *held, **held_end; /* in the order of their frames, which is that of their counts */
    uint64_t counted;                  /* by the last frame that completes: counts do not go back */
    size_t held_bytes;                 /* of messages */
    bool releasing;                    /* a thread lets frames go, one after the other */
    struct tpc_source *sources;
    uint32_t cancelled;
    uint64_t landed;        /* downloads 1 … landed in the order of hand-overs are complete */
    uint64_t *landed_ahead; /* complete beyond `landed`, unordered */
    size_t landed_ahead_count, landed_ahead_room;
    _Atomic uint32_t transfer_news; /* bumped when an upload or download ends */
    _Atomic uint32_t transfer_waiters;
    _Atomic uint32_t upload_news; /* bumped when chunks may be taken */
    _Atomic uint32_t upload_sleepers;
    _Atomic uint32_t downloads_pending;

    struct tp_lock opening;      /* held while data connections are opened */
    _Atomic uint32_t data_count; /* sockets */
    _Atomic uint32_t lanes;      /* threads that chunks are dealt to */
    _Atomic bool serving;        /* seat: greeted and settled */
    _Atomic bool data_open;      /* all of them */
    struct tpc_data data[TP_DATA_CONNECTIONS];
};

/* conn.c */
void tpc_lose(struct tp_conn *conn, enum tp_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static inline bool tpc_is_lost(const struct tp_conn *conn) {
    return TP_UNLIKELY(atomic_load_explicit(&conn->lost, memory_order_seq_cst) != TP_OK);
}
static inline enum tp_status tpc_lost_status(const struct tp_conn *conn) {
    return (enum tp_status)atomic_load_explicit(&conn->lost, memory_order_seq_cst);
}
/* Around what may sleep or enter the kernel with a lock or with a reply on its way to this thread's stack: the program may cancel
 * the thread (pthread_cancel), and nobody else could go on. What it wanted happens at its next cancellation point. */
static inline int tpc_defer_cancel(void) {
    int before;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    return before;
}
static inline void tpc_allow_cancel(int before) { pthread_setcancelstate(before, &before); }
bool tpc_forked(void); /* a child that has no connection of its own */

/* connect.c */
/* A tuned socket connected to any of the addresses of to->host, or a sentence. */
enum tp_status tpc_connect_any(const struct tp_endpoint *to, bool bulk, int *out, char *why, size_t why_size);
enum tp_status tpc_connect(struct tp_conn *conn);
void tpc_greeting(const struct tp_conn *conn, const struct tp_endpoint *to, uint32_t role, uint32_t index,
                  struct tp_greeting *greeting);
/* ---- who.c ---- */
void tpc_who(struct tp_greeting *greeting); /* fills in what it says of this process, its user and machine */
enum tp_status tpc_check_welcome(const struct tp_conn *conn, const struct tp_welcome *welcome, char *why,
                                 size_t why_size);
enum tp_status tpc_connect_data(struct tp_conn *conn, struct tpc_data *data);

/* skew.c */
/* Asks the worker what it has; a sentence in the log where nothing would work. Before anybody else has the connection. */
enum tp_status tpc_skew_settle(struct tp_conn *conn);
void tpc_skew_refuse(const struct tp_conn *conn, uint16_t op); /* says so once, by name, and for tp_refused */
/* Our number of one of the worker's; 0: none that is the same; TP_DROPPED. */
static inline uint16_t tpc_ours(const struct tp_conn *conn, uint16_t op) {
    return TP_UNLIKELY(conn->skew != NULL) ? conn->skew->ours[op] : op;
}

/* sender.c */
enum tp_status tpc_ring_make(struct tp_conn *conn);
/* The command ring: `size` bytes of the file at `offset`, mapped twice in a row. */
enum tp_status tpc_ring_map(struct tp_conn *conn, int fd, uint64_t offset, uint64_t size);
enum tp_status tpc_sender_start(struct tp_conn *conn);
/* The reserved frame joins the stream; the append lock is dropped. `waits`: the caller waits for what comes of it. */
void tpc_publish(struct tp_conn *conn, bool waits);
void tpc_wake_sender(struct tp_conn *conn);
/* Sends what is committed, without sleeping, and lets it lie for nobody's nap; true when nothing is left or somebody else is at it. */
bool tpc_flush_now(struct tp_conn *conn);

/* receiver.c */
enum tp_status tpc_listener_start(struct tp_conn *conn);
void tpc_deliver(struct tpc_caller *caller, uint32_t state); /* its reply is complete, or never comes */
void tpc_gated(struct tpc_caller *caller);                   /* its reply is here but waits for downloads */
void tpc_wake_listener(struct tp_conn *conn);
void tpc_nudge_listener(struct tp_conn *conn); /* if something is outstanding that nobody reads for */
void tpc_wake_all_callers(struct tp_conn *conn);

static inline void tpc_expects(struct tp_conn *conn, uint64_t frame) {
    atomic_store_explicit(&conn->waited_frame, frame, memory_order_relaxed);
}

/* Frames behind the last that something is to come back for; less than none while that is about to be appended. */
static inline int64_t tpc_unasked(const struct tp_conn *conn) {
    return (int64_t)(atomic_load_explicit(&conn->appended_frames, memory_order_relaxed) -
                     atomic_load_explicit(&conn->waited_frame, memory_order_relaxed));
}
/* Naps may go on. For whoever has published: a thread that expects something has said so before, and sees it here. */
static inline bool tpc_streams(const struct tp_conn *conn) { return tpc_unasked(conn) > TPC_EXPECTED; }

/* Of what the session sent last and nobody has read: why it ends. Whoever finds that it has may hold locks, so nothing else is
 * looked at. False while another thread reads, or this one. */
bool tpc_hear_last(struct tp_conn *conn);
/* Over TCP, by a thread that has met the end and does not read itself: whoever reads is about to hear it, with what comes before. */
void tpc_hear_end(struct tp_conn *conn);
/* Somebody has waited for so many seconds, and nothing has come: now and then the worker is asked whether the session is stopped. */
void tpc_silence(struct tp_conn *conn, uint32_t seconds);
/* Says that it is, once until it goes on. */
void tpc_say_stopped(struct tp_conn *conn, bool stopped);
/* Asks the worker, and says what it answers. */
void tpc_look(struct tp_conn *conn);
/* Hands a message to its handler. */
void tpc_dispatch_message(struct tp_conn *conn, uint16_t op, const unsigned char *body, size_t size);

/* held.c */
/* Frames that complete, in their order. True: it is delivered, or handled, here with the last of the downloads that it counts.
 * False: that is for the caller to do now, after loss too. A count that cannot be loses the connection. Holds receive. */
bool tpc_hold_reply(struct tp_conn *conn, struct tpc_caller *caller, uint64_t transfers);
bool tpc_hold_message(struct tp_conn *conn, const struct tp_reply_frame *frame, const unsigned char *body);
/* Lets go what has waited long enough, everything after loss. Under transfers, which is dropped meanwhile. */
void tpc_release(struct tp_conn *conn);

/* transfers.c */
/* Whether so many downloads have arrived or may yet: no more than were asked for. Under transfers. */
bool tpc_can_land(const struct tp_conn *conn, uint64_t transfers);
/* After loss: once it returns, nobody writes into memory that downloads were to go to. */
void tpc_quiesce(struct tp_conn *conn);
/* A piece of a chunk is about to be received: where to (NULL: nowhere). False when it does not fit its transfer. After true,
 * tpc_piece_end must follow; `handed` stands with a chunk's last piece. False from it: more bytes than were asked for. */
bool tpc_piece_begin(struct tp_conn *conn, const struct tp_chunk *rest, struct tpc_download **download,
                     unsigned char **start);
bool tpc_piece_end(struct tp_conn *conn, struct tpc_download *download, size_t received, uint32_t handed);
bool tpc_chunk_out(struct tp_conn *conn, struct tpc_upload **upload, struct tp_chunk *chunk,
                   const unsigned char **payload);
void tpc_chunk_sent(struct tp_conn *conn, struct tpc_upload *upload, size_t size);
void tpc_wake_transfers(struct tp_conn *conn);

/* data.c */
void *tpc_data_send(void *argument);
void *tpc_data_receive(void *argument);

/* trace.c */
void tpc_trace_learn(void); /* after the log was set up: whether calls are traced */
static inline bool tpc_frames_traced(const struct tp_conn *conn) { return TP_UNLIKELY(conn->look_after == 0); }
/* The line of a frame; `reply` and when it was sent and answered when the thread waited for it, else NULL and when it was sent. */
void tpc_trace_frame(const struct tp_frame *frame, uint64_t number, const struct tp_reply *reply, uint64_t begin,
                     uint64_t end);

/* records.c */
bool tpc_records_wanted(void);
void tpc_records_write(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *tpc_json_text(char *out, size_t size, const char *from);

/* stats.c */
void tpc_stats_round_trip(const char *what, uint64_t ns);
void tpc_stats_at_exit(void);
/* The path in a variable with each %p replaced by the process id; false when there is none, or a longer one. */
bool tpc_path_from(const char *variable, char *out, size_t size);
void tpc_program_name(char out[16]); /* as the kernel has it; plain characters only */
void tpc_stats_forget(void);         /* in a child of fork, which has one thread: what was counted is the parent's */

#endif
