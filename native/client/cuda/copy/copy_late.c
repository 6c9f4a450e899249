/*
 * Uploads whose bytes are taken when the stream has come to them, as CUDA reads pinned memory.
 *
 * An upload names no host function: as long as one is outstanding anywhere in the process, or a download into its source,
 * it may stand in front of it, through events, the legacy stream or a graph, and only the worker's GPU knows. Then the
 * frame (copy_in_late) carries no bytes; the session asks for them when the stream is there, and one thread of our own,
 * made with the first such upload, takes and sends them. It runs no code of the program, so it always comes to an end,
 * whatever host functions and callers wait for. In all other cases bytes are taken when the call is made: what could
 * write them has run, and the program may not.
 *
 * Any thread; a message arrives on a thread of the connection and only changes the list, which is guarded by a lock that
 * is not held across a call. The worker's numbers choose among the list's records and are bounded by them. Memory is read
 * between the call and the record's end; whoever frees it waits for that (tp_transfers_touching_wait).
 */
#include "tpc_copy.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <tp_net.h>

#define STACK (256u << 10)

struct late {
    struct late *next;
    uint64_t token;
    _Atomic uint64_t frame; /* number of its frame */
    struct tpc_host_side side;
    uint64_t size, sent, limit; /* bytes asked for */
    bool over;
};

static struct tp_lock lock;
static struct late *lates, **lates_end = &lates;
static _Atomic uint32_t news; /* futex of the thread that sends */
static uint64_t last_token;
static bool running;

/* ---- sending ---- */

/* Up to `most` bytes from `at` on of those that the side has, packed; in `room` where they do not lie side by side. */
static const unsigned char *gather(const struct tpc_host_side *side, uint64_t at, size_t most, unsigned char *room) {
    for (size_t have = 0;;) {
        const uint64_t row = (at + have) / side->width, x = (at + have) % side->width;
        const unsigned char *from =
            side->first + side->slice * (row / side->height) + side->pitch * (row % side->height) + x;
        uint64_t run = side->width - x;
        if (side->pitch == side->width) {
            run += side->width * (side->height - row % side->height - 1);
            run = side->slice == side->width * side->height ? most : run;
        }
        if (!have && run >= most) {
            return from;
        }
        const size_t part = run < most - have ? (size_t)run : most - have;
        memcpy(room + have, from, part);
        have += part;
        if (have == most) {
            return room;
        }
    }
}

static void end(struct late *late) {
    tp_lock_take(&lock);
    for (struct late **at = &lates; *at; at = &(*at)->next) {
        if (*at == late) {
            *at = late->next;
            lates_end = *at ? lates_end : at;
            break;
        }
    }
    tp_lock_drop(&lock);
    tp_source_end(tpc_conn, late->token);
    tp_listen(tpc_conn, -1);
    free(late);
}

/* Sends what was asked for; false when nothing more is to come of this upload. */
static bool send_some(struct late *late, uint64_t limit) {
    static unsigned char room[TP_INLINE_MAX];
    while (late->sent < limit) {
        const uint64_t left = limit - late->sent;
        const size_t size = left < sizeof room ? (size_t)left : sizeof room;
        struct tpg_late_bytes_in in = {
            .token = late->token, .data = gather(&late->side, late->sent, size, room), .data_size = size};
        if (tpc_post_late_bytes("cuMemcpyHtoDAsync", &in) == TPC_LOST_ERROR) {
            return false;
        }
        late->sent += size;
    }
    tp_flush(tpc_conn);
    return late->sent < late->size;
}

static void *sender(void *unused) {
    (void)unused;
    tp_thread_self()->urgent = true;
    for (;;) {
        uint32_t seen = atomic_load(&news);
        uint64_t limit = 0;
        bool over = false;
        tp_lock_take(&lock);
        struct late *late = TP_FIND(lates, it->over || it->limit > it->sent);
        if (late) {
            limit = late->limit;
            over = late->over;
        }
        tp_lock_drop(&lock);
        if (!late) {
            tp_futex_wait(&news, seen, 0);
        } else if (over || !send_some(late, limit)) {
            end(late);
        }
    }
    return NULL;
}

bool tpc_on_upload_wanted(const struct tpg_upload_wanted_in *in) {
    uint64_t frame = 0; /* no host function that was sent before it is outstanding */
    tp_lock_take(&lock);
    struct late *late = TP_FIND(lates, it->token == in->token);
    if (late) {
        const uint64_t limit = in->limit < late->size ? in->limit : late->size;
        late->limit = limit > late->limit ? limit : late->limit;
        late->over = late->over || in->over;
        frame = in->quiet ? atomic_load(&late->frame) : 0;
    }
    tp_lock_drop(&lock);
    tpc_host_functions_through(frame);
    atomic_fetch_add(&news, 1);
    tp_futex_wake(&news, 1);
    return true;
}

/* ---- the call ---- */

CUresult tpc_copy_late(const char *name, const struct tpg_area *area, const struct tpc_host_side *side,
                       CUstream stream) {
    struct tpg_copy_in_late_in in = {.area = *area, .stream = (uint64_t)(uintptr_t)stream};
    struct late *late = calloc(1, sizeof *late);
    if (!late) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    late->side = *side;
    late->size = side->width * side->height * side->depth;
    tp_lock_take(&lock);
    running = running || tp_thread_start(NULL, "tf-late", STACK, sender, NULL) == TP_OK;
    bool able = running;
    in.token = late->token = ++last_token;
    if (able) {
        *lates_end = late;
        lates_end = &late->next;
    }
    tp_lock_drop(&lock);
    if (!able) {
        free(late);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    tp_listen(tpc_conn, 1);
    if (!tp_source_begin(tpc_conn, in.token, side->first, tpc_side_span(side))) {
        end(late);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t frame_size = tpg_size_copy_in_late_in(&in);
    unsigned char *body = tpc_reserve(TPG_OP_copy_in_late, frame_size);
    if (!body) {
        end(late);
        return tpc_lost();
    }
    struct tp_cursor c = tp_cursor_make(body, frame_size);
    tpg_put_copy_in_late_in(&c, &in);
    atomic_store(&late->frame, tp_frames(tpc_conn) + 1);
    return tpc_post(name, NULL); /* from here on it may be gone */
}
