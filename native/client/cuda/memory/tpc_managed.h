/*
 * Managed memory inside the memory family: what it consists of, and how threads ask for it.
 *
 * The pieces of an allocation are the server's (managed.c); other threads read of it what never changes.
 */
#ifndef TPC_MANAGED_H
#define TPC_MANAGED_H

#include "tpc_memory.h"

enum { TPC_PIECE = 64 << 10 }; /* bytes that come and go together; the last one of an allocation may be less */

/* Who has the bytes of a piece, and what the program may do with its pages then. */
enum tpc_piece {
    TPC_AWAY,  /* the device; the program may touch nothing */
    TPC_CLEAN, /* both; it may read */
    TPC_DIRTY, /* the program, which may write */
};

/* A part of a block of variables: the rest of that is not the program's. */
struct tpc_variable {
    struct tpc_variable *next;
    uint64_t start, size;
    struct tpc_context *context;
};

struct tpc_managed {
    uint64_t start, mapped; /* mapped: whole pages */
    uint64_t block;         /* what the worker gave: begins at `start` or up to a page before */
    unsigned char *alias;   /* the same pages, which we may always touch */
    struct tpc_context *context;
    CUstream beside;                /* a stream of that context for our copies alone, which waits for nothing */
    uint64_t pool, size;            /* that it came from, 0 = none, and what was asked for */
    struct tpc_managed *leaves;     /* the next of those that a stream is to free */
    struct tpc_hint *hints;         /* managed_hint.c */
    struct tpc_variable *variables; /* of a block of them, which lives as long as the process */
    /* The server's alone. */
    size_t count;     /* of pieces */
    size_t open;      /* of those that are not away */
    bool fresh;       /* never taken: pages that the program has not touched are 0 on both sides */
    bool counted;     /* in tpc_managed_open */
    size_t next, run; /* where the next touch would go on with the last, and how many pieces came then */
    struct tpc_managed *after, **here; /* of those that are open */
    unsigned char pieces[];            /* enum tpc_piece */
};

/* ---- managed_fault.c: how a thread asks the server and waits ---- */
enum tpc_wish { TPC_TOUCH, TPC_LEAVE, TPC_TAKE, TPC_ADD, TPC_REMOVE, TPC_VARIABLE, TPC_VARIABLE_GONE };
struct tpc_request {
    struct tpc_request *next;
    enum tpc_wish wish;
    bool write;       /* touch: it was to be written, as far as is known */
    bool inside;      /* touch: by a host function, for which the GPU stands still; leave: at the end of one */
    uint64_t address; /* touch; of a variable */
    struct tpc_variable *variable;
    struct tpc_managed *managed;
    CUresult result;
    _Atomic uint32_t done;
};
/* Any thread, in a signal handler, too; the request lies in the caller's stack. */
CUresult tpc_managed_ask(struct tpc_request *request);
void tpc_managed_hand_on(struct tpc_request *request); /* from who waits for the GPU to the server */
/* The next request; blocks until there is one. For the server. */
struct tpc_request *tpc_managed_next(bool idle);
void tpc_managed_done(struct tpc_request *request, CUresult result);
/* Puts the handler in front of the program's if it is not there. */
void tpc_managed_guard(void);
/* From now on touches of [start, start+size) are ours. False without the threads or the handler. */
bool tpc_managed_watch(uint64_t start, uint64_t size);

/* ---- managed_window.c ---- */
/* Maps the range of device addresses for managed memory, once; false, with a sentence, where that cannot be. */
bool tpc_window_open(void);
/* Maps pages at an address outside of that range, twice; NULL where this process has something there. */
unsigned char *tpc_window_extra(uint64_t start, uint64_t size);
/* Where we may touch the bytes at an address of it. */
unsigned char *tpc_window_alias(uint64_t address);
/* The first part of [*begin, *end) of the memory that has pages, as far as the kernel tells. False: none of it has. */
bool tpc_window_data(const struct tpc_managed *m, uint64_t *begin, uint64_t *end);

/* ---- managed_api.c ---- */
/* Memory that a stream is to free, and has not yet; NULL: none is there. */
struct tpc_managed *tpc_managed_leaving(uint64_t address);
/* The stream for our copies in a context, the calling thread's current one. */
CUresult tpc_stream_beside(const struct tpc_context *context, CUstream *out);

/* ---- managed_variable.c ---- */
/* The block that holds the address, NULL if none does. */
struct tpc_managed *tpc_variables_at(uint64_t address);

/* ---- managed_hint.c ---- */
void tpc_hints_free(struct tpc_managed *m);

/* ---- managed.c ---- */
/* The thread that has all pieces. */
void *tpc_managed_serve(void *unused);
/* The thread that waits for the GPU before it hands touches on: so the server, which host functions need, never stands still. */
void *tpc_managed_idle(void *unused);
/* Until our copies of the memory are done. */
CUresult tpc_managed_settle(const struct tpc_managed *m);

#endif
