/*
 * Bookkeeping of transfers: which user memory is read by uploads and written by downloads, and when each is done.
 *
 * Owns the lists under `transfers`. Entered by appenders (between reserve and commit), by the data connections' threads, by
 * whoever reads the control connection, and by threads that wait. What the worker sends decides only *when* something
 * completes: every write is looked up here first and lies inside the destination that this process's own call named.
 */
#include "conn_internal.h"

#include <stdlib.h>

#define CANCELLED_MAX 1024u /* their bytes may still arrive; older ones are forgotten */
#define CHUNK_MIN (256u << 10)

static bool overlap(const void *a, size_t a_size, const void *b, size_t b_size) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x <= y ? y - x < a_size : x - y < b_size;
}

static void wake_waiters(struct tp_conn *conn) {
    atomic_fetch_add_explicit(&conn->transfer_news, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&conn->transfer_waiters, memory_order_seq_cst) > 0) {
        tp_futex_wake(&conn->transfer_news, INT32_MAX);
    }
}

uint64_t tp_transfer_next(struct tp_conn *conn) { return ++conn->next_transfer; }

/* ---- uploads ---- */

void tp_commit_upload(struct tp_conn *conn, uint64_t number, const void *source, size_t size) {
    uint32_t lanes = atomic_load_explicit(&conn->lanes, memory_order_acquire);
    if (size > 0) {
        struct tpc_upload *upload = lanes ? calloc(1, sizeof *upload) : NULL;
        if (!upload) {
            tpc_lose(conn, TP_ERROR_MEMORY,
                     lanes ? "no memory for a transfer" : "a transfer before the data connections");
        } else {
            size_t chunk = (size / lanes + 4095) & ~(size_t)4095;
            upload->chunk = chunk < CHUNK_MIN ? CHUNK_MIN : chunk > TP_CHUNK_MAX ? TP_CHUNK_MAX : chunk;
            upload->number = number;
            upload->source = source;
            upload->size = size;
            size_t chunks = (size - 1) / upload->chunk + 1;
            conn->wake_uploads = (int)(chunks < lanes ? chunks : lanes);
            tp_lock_take(&conn->transfers);
            *(conn->uploads_end ? &conn->uploads_end->next : &conn->uploads) = upload;
            conn->uploads_end = upload;
            if (!conn->dealing) {
                conn->dealing = upload;
            }
            atomic_fetch_add_explicit(&conn->upload_news, 1, memory_order_seq_cst);
            tp_lock_drop(&conn->transfers); /* from here on the upload may be sent and gone */
        }
    }
    tp_commit(conn);
}

/* The next chunk for a data connection. Chunks are dealt in commit order, so on every connection they stand in that order. */
bool tpc_chunk_out(struct tp_conn *conn, struct tpc_upload **out, struct tp_chunk *chunk,
                   const unsigned char **payload) {
    tp_lock_take(&conn->transfers);
    struct tpc_upload *upload = conn->dealing;
    if (upload) {
        size_t left = upload->size - upload->dealt;
        size_t size = left < upload->chunk ? left : upload->chunk;
        *chunk = (struct tp_chunk){.transfer = upload->number, .offset = upload->dealt, .size = (uint32_t)size};
        *payload = upload->source + upload->dealt;
        upload->dealt += size;
        if (upload->dealt == upload->size) {
            conn->dealing = upload->next;
        }
    }
    tp_lock_drop(&conn->transfers);
    *out = upload;
    return upload != NULL;
}

void tpc_chunk_sent(struct tp_conn *conn, struct tpc_upload *upload, size_t size) {
    tp_lock_take(&conn->transfers);
    upload->sent += size;
    bool done = upload->sent == upload->size;
    if (done) {
        struct tpc_upload *previous = NULL;
        for (struct tpc_upload *u = conn->uploads; u != upload; u = u->next) {
            previous = u;
        }
        *(previous ? &previous->next : &conn->uploads) = upload->next;
        if (conn->uploads_end == upload) {
            conn->uploads_end = previous;
        }
    }
    tp_lock_drop(&conn->transfers);
    if (done) {
        free(upload);
        wake_waiters(conn);
    }
}

bool tp_source_begin(struct tp_conn *conn, uint64_t token, const void *start, size_t size) {
    struct tpc_source *source = malloc(sizeof *source);
    if (!source) {
        return false;
    }
    *source = (struct tpc_source){.token = token, .start = start, .size = size};
    tp_lock_take(&conn->transfers);
    TP_PUSH(conn->sources, source);
    tp_lock_drop(&conn->transfers);
    return true;
}

void tp_source_end(struct tp_conn *conn, uint64_t token) {
    tp_lock_take(&conn->transfers);
    struct tpc_source *found = TP_TAKE(conn->sources, it->token == token);
    tp_lock_drop(&conn->transfers);
    free(found);
    wake_waiters(conn);
}

/* ---- downloads ---- */

static struct tpc_download *find(struct tp_conn *conn, uint64_t number) {
    return TP_FIND(conn->downloads, it->number == number);
}

static void forget(struct tp_conn *conn, struct tpc_download *d) {
    *(d->previous ? &d->previous->next : &conn->downloads) = d->next;
    *(d->next ? &d->next->previous : &conn->downloads_end) = d->previous;
    if (d->cancelled) {
        conn->cancelled--;
    } else {
        atomic_fetch_sub_explicit(&conn->downloads_pending, 1, memory_order_seq_cst);
    }
    free(d);
}

void tp_expect_download(struct tp_conn *conn, uint64_t number, void *destination, size_t size) {
    struct tpc_download *d = calloc(1, sizeof *d);
    if (!d) {
        tpc_lose(conn, TP_ERROR_MEMORY, "no memory for a transfer");
        return;
    }
    d->number = number;
    d->destination = destination;
    d->size = size;
    tpc_expects(conn, tp_frames(conn));
    tp_lock_take(&conn->transfers);
    d->previous = conn->downloads_end;
    *(d->previous ? &d->previous->next : &conn->downloads) = d;
    conn->downloads_end = d;
    atomic_fetch_add_explicit(&conn->downloads_pending, 1, memory_order_seq_cst);
    tp_lock_drop(&conn->transfers);
    if (conn->seat) {
        conn->wake_listener = 1;
        if (size > TP_CHUNK_MAX) { /* one chunk is soon copied by whoever waits for it */
            atomic_fetch_add_explicit(&conn->upload_news, 1, memory_order_seq_cst);
            conn->wake_uploads = INT32_MAX;
        }
    }
}

static void cancel(struct tp_conn *conn, struct tpc_download *d) {
    d->cancelled = true;
    conn->cancelled++;
    atomic_fetch_sub_explicit(&conn->downloads_pending, 1, memory_order_seq_cst);
}

static void wait_idle(struct tp_conn *conn, const struct tpc_download *d, uint32_t mine) {
    while (d->busy > mine) { /* one non-blocking receive at most */
        tp_lock_drop(&conn->transfers);
        tp_pause();
        tp_lock_take(&conn->transfers);
    }
}

void tp_download_cancel(struct tp_conn *conn, uint64_t number) {
    tp_lock_take(&conn->transfers);
    struct tpc_download *d = find(conn, number);
    if (d && !d->cancelled) {
        cancel(conn, d);
        d->busy++; /* ours: keeps the record while the lock is dropped */
        wait_idle(conn, d, 1);
        d->busy--;
        for (struct tpc_download *old = conn->downloads;
             old && conn->cancelled > CANCELLED_MAX && !tpc_is_lost(conn);) {
            struct tpc_download *next = old->next;
            if (old->cancelled && !old->busy) {
                forget(conn, old);
            }
            old = next;
        }
    }
    tp_lock_drop(&conn->transfers);
    wake_waiters(conn);
}

/* Counts `d`, complete, in the order of hand-overs; false when its place makes no sense or there is no memory. */
static bool land(struct tp_conn *conn, uint32_t handed) {
    uint32_t distance = (handed - (uint32_t)conn->landed) & ~TP_CHUNK_HANDED;
    if (!(handed & TP_CHUNK_HANDED) || distance == 0 || distance > TP_CHUNK_HANDED / 2) {
        return false;
    }
    if (distance > 1) {
        if (conn->landed_ahead_count == conn->landed_ahead_room) {
            size_t room = conn->landed_ahead_room ? conn->landed_ahead_room * 2 : 64;
            uint64_t *grown = realloc(conn->landed_ahead, room * sizeof *grown);
            if (!grown) {
                return false;
            }
            conn->landed_ahead = grown;
            conn->landed_ahead_room = room;
        }
        conn->landed_ahead[conn->landed_ahead_count++] = conn->landed + distance;
        return true;
    }
    conn->landed++;
    for (size_t i = 0; i < conn->landed_ahead_count;) {
        if (conn->landed_ahead[i] <= conn->landed + 1) {
            conn->landed += conn->landed_ahead[i] == conn->landed + 1;
            conn->landed_ahead[i] = conn->landed_ahead[--conn->landed_ahead_count];
            i = 0;
        } else {
            i++;
        }
    }
    return true;
}

bool tpc_can_land(const struct tp_conn *conn, uint64_t transfers) {
    uint64_t outstanding = conn->landed_ahead_count;
    if (transfers <= conn->landed) {
        return true;
    }
    for (const struct tpc_download *d = conn->downloads; d; d = d->next) {
        outstanding++;
    }
    return transfers - conn->landed <= outstanding;
}

bool tpc_piece_begin(struct tp_conn *conn, const struct tp_chunk *chunk, struct tpc_download **out,
                     unsigned char **start) {
    tp_lock_take(&conn->transfers);
    struct tpc_download *d = find(conn, chunk->transfer);
    bool fits = d && chunk->offset <= d->size && chunk->size <= d->size - chunk->offset &&
                chunk->size <= d->size - d->received && !tpc_is_lost(conn);
    if (fits) {
        d->busy++;
        *start = d->cancelled ? NULL : d->destination + chunk->offset;
    }
    tp_lock_drop(&conn->transfers);
    *out = d;
    return fits;
}

bool tpc_piece_end(struct tp_conn *conn, struct tpc_download *d, size_t received, uint32_t handed) {
    bool good = true, done;
    tp_lock_take(&conn->transfers);
    d->busy--;
    good = received <= d->size - d->received && (!handed || !d->handed);
    d->received += good ? received : 0;
    d->handed = handed && good ? handed : d->handed;
    done = good && d->received == d->size && d->handed && !d->busy && !tpc_is_lost(conn); /* quiesce may wait for it */
    if (done) {
        good = land(conn, d->handed);
        forget(conn, d);
        tpc_release(conn);
    }
    tp_lock_drop(&conn->transfers);
    if (done) {
        wake_waiters(conn);
    }
    return good;
}

bool tp_download_written(struct tp_conn *conn, uint64_t number, const void *data, size_t size) {
    tp_lock_take(&conn->transfers);
    struct tpc_download *d = find(conn, number);
    bool good = d && d->size == size && d->received == 0 && !d->busy && !d->handed;
    unsigned char *destination = good && !d->cancelled ? d->destination : NULL;
    if (good) {
        d->busy++;
    }
    tp_lock_drop(&conn->transfers);
    if (!good) {
        return false;
    }
    if (destination && size) {
        memcpy(destination, data, size);
    }
    tp_lock_take(&conn->transfers);
    d->busy--;
    /* A worker that breaks the format may have sent chunks of the same transfer meanwhile: then the record stays. */
    good = !d->busy && d->received == 0;
    if (good && !tpc_is_lost(conn)) {
        forget(conn, d);
    }
    tp_lock_drop(&conn->transfers);
    wake_waiters(conn);
    return good;
}

bool tp_download_pending(struct tp_conn *conn, const void *start, size_t size) {
    if (atomic_load_explicit(&conn->downloads_pending, memory_order_acquire) == 0) {
        return false;
    }
    bool pending = false;
    tp_lock_take(&conn->transfers);
    for (const struct tpc_download *d = conn->downloads; d && !pending; d = d->next) {
        pending = !d->cancelled && overlap(d->destination, d->size, start, size);
    }
    tp_lock_drop(&conn->transfers);
    return pending;
}

/* ---- waiting and loss ---- */

static bool upload_pending(const struct tp_conn *conn, uint64_t number) {
    const struct tpc_upload *u = conn->uploads;
    while (u && u->number < number) {
        u = u->next;
    }
    return u && u->number == number;
}

static bool touching(const struct tp_conn *conn, const void *start, size_t size) {
    if (TP_FIND(conn->uploads, overlap(it->source, it->size, start, size))) {
        return true;
    }
    for (const struct tpc_source *s = conn->sources; s; s = s->next) {
        if (overlap(s->start, s->size, start, size)) {
            return true;
        }
    }
    return TP_FIND(conn->downloads, !it->cancelled && overlap(it->destination, it->size, start, size)) != NULL;
}

/* What a thread waits for: an upload, or (0) everything that touches the range. */
struct wanted {
    uint64_t upload;
    const void *start;
    size_t size;
};

static bool is_pending(struct tp_conn *conn, const struct wanted *wanted) {
    return wanted->upload ? upload_pending(conn, wanted->upload) : touching(conn, wanted->start, wanted->size);
}

static enum tp_status wait_for(struct tp_conn *conn, struct wanted wanted) {
    while (conn->seat && !tpc_is_lost(conn) && (tpc_copier_up(conn) || tpc_copier_down(conn))) {
    }
    enum tp_status status = TP_OK;
    atomic_fetch_add_explicit(&conn->transfer_waiters, 1, memory_order_seq_cst);
    for (;;) {
        uint32_t news = atomic_load_explicit(&conn->transfer_news, memory_order_seq_cst);
        if (tpc_is_lost(conn)) {
            status = tpc_lost_status(conn);
            break;
        }
        tp_lock_take(&conn->transfers);
        bool pending = is_pending(conn, &wanted);
        tp_lock_drop(&conn->transfers);
        if (!pending) {
            break;
        }
        tpc_flush_now(conn);
        tpc_wake_sender(conn);
        tpc_nudge_listener(conn);
        tp_futex_wait(&conn->transfer_news, news, TPC_NO_NEWS);
    }
    atomic_fetch_sub_explicit(&conn->transfer_waiters, 1, memory_order_seq_cst);
    if (status != TP_OK && status != TP_ERROR_FORKED) {
        tpc_quiesce(conn);
    }
    return status;
}

enum tp_status tp_upload_wait(struct tp_conn *conn, uint64_t number) {
    return wait_for(conn, (struct wanted){.upload = number});
}

enum tp_status tp_transfers_touching_wait(struct tp_conn *conn, const void *start, size_t size) {
    return wait_for(conn, (struct wanted){.start = start, .size = size});
}

void tpc_quiesce(struct tp_conn *conn) {
    tp_lock_take(&conn->transfers);
    for (struct tpc_download *d = conn->downloads; d; d = d->next) { /* no record leaves the list after loss */
        if (!d->cancelled) {
            cancel(conn, d);
        }
        wait_idle(conn, d, 0);
    }
    tp_lock_drop(&conn->transfers);
}

void tpc_wake_transfers(struct tp_conn *conn) {
    tpc_quiesce(conn);
    tp_lock_take(&conn->transfers);
    tpc_release(conn);
    tp_lock_drop(&conn->transfers);
    wake_waiters(conn);
    atomic_fetch_add_explicit(&conn->upload_news, 1, memory_order_seq_cst);
    tp_futex_wake(&conn->upload_news, INT32_MAX);
}
