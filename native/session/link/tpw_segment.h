/*
 * The worker's shared segment as a session sees it: mapped at start, registered with the driver as soon as there is a context.
 *
 * Executor thread only; the mapping lasts as long as the process. Memory below `base` is written by clients of this worker at
 * any time; `owners` only by the worker's own processes.
 */
#ifndef TPW_SEGMENT_H
#define TPW_SEGMENT_H

#include <tp_segment.h>

struct tpw_session;

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

/* done.c: writes the words that wait for the replies before them to be in the ring, once they are. */
void tpw_words_write(struct tpw_session *s);
/* The GPU has not come to the last mark yet, so the client waits for it, and its next frame comes right behind. The word is
 * the client's to write: a lie keeps its own session awake for a moment, or lets it sleep. */
bool tpw_mark_owed(const struct tpw_session *s);

#endif
