/*
 * Large transfers through the staging blocks of a slot.
 *
 * Several copier threads, because one thread copies at a fifth of the bus's speed; callers that wait for a transfer copy
 * along with them. Entered by those threads and callers. Records come from the session: block and size are bounded, and where
 * bytes may be written is looked up in transfers.c for each chunk, as over TCP.
 */
#include "conn_internal.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#define COPIERS_MAX 8u
#define IDLE_TURNS 2000u /* looks at the record ring before a copier sleeps between them */
/* Then it sleeps for an eighth of the time that it has slept in vain: a copy may wait for a kernel of seconds. Whoever waits for
 * the first chunk copies it by itself. */
#define NAP_FIRST_NS 20000u
#define NAP_MOST_NS 2000000u
#define NAP_PART 8u

static unsigned char *block_memory(const struct tpc_seat *seat, uint64_t start, uint32_t block) {
    return seat->base + start + (uint64_t)block * TP_CHUNK_MAX;
}

/* ---- up ---- */

/* A block that neither a copier fills nor the session still reads, or -1. */
static int take_block(struct tpc_seat *seat) {
    int found = -1;
    tp_lock_take(&seat->up_lock);
    for (uint32_t i = 0; i < seat->blocks && found < 0; i++) {
        if (!seat->up_busy[i] && atomic_load_explicit(&seat->slot->up_block[i], memory_order_acquire) == 0) {
            seat->up_busy[i] = 1;
            found = (int)i;
        }
    }
    tp_lock_drop(&seat->up_lock);
    return found;
}

static void send_record(struct tp_conn *conn, const struct tp_chunk *chunk, uint32_t block) {
    struct tpc_seat *seat = conn->seat;
    struct tp_chunk_record record = {.chunk = *chunk, .block = block};
    tp_lock_take(&seat->up_lock);
    /* One record for each block at most is on its way, so there is room unless the session's index cannot be. */
    bool room = tp_ring_room(&seat->up) >= sizeof record;
    if (room) {
        atomic_store_explicit(&seat->slot->up_block[block], 1, memory_order_relaxed);
        seat->up_busy[block] = 0;
        tp_ring_put(&seat->up, 0, &record, sizeof record);
        tp_ring_publish(&seat->up, sizeof record);
    }
    tp_lock_drop(&seat->up_lock);
    if (!room) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "the index of a chunk ring cannot be");
        return;
    }
    atomic_fetch_add_explicit(&tp_counters.bytes_sent, chunk->size, memory_order_relaxed);
    tp_bell_ring(&seat->slot->session_bell);
}

bool tpc_copier_up(struct tp_conn *conn) {
    struct tpc_seat *seat = conn->seat;
    int block = take_block(seat);
    if (block < 0) {
        return false;
    }
    struct tpc_upload *upload;
    struct tp_chunk chunk;
    const unsigned char *payload;
    if (!tpc_chunk_out(conn, &upload, &chunk, &payload)) {
        tp_lock_take(&seat->up_lock);
        seat->up_busy[block] = 0;
        tp_lock_drop(&seat->up_lock);
        return false;
    }
    memcpy(block_memory(seat, seat->run.up, (uint32_t)block), payload, chunk.size);
    send_record(conn, &chunk, (uint32_t)block);
    tpc_chunk_sent(conn, upload, chunk.size);
    return true;
}

/* ---- down ---- */

static bool take_record(struct tp_conn *conn, struct tp_chunk_record *record) {
    struct tpc_seat *seat = conn->seat;
    if (atomic_load_explicit(&seat->down.shared->head, memory_order_relaxed) == seat->down.at ||
        !tp_lock_try(&seat->down_lock)) {
        return false;
    }
    bool there = tp_ring_filled(&seat->down) >= sizeof *record;
    if (there) {
        tp_ring_get(&seat->down, record, sizeof *record);
        tp_ring_consume(&seat->down, sizeof *record);
    }
    bool broken = seat->down.broken;
    tp_lock_drop(&seat->down_lock);
    if (broken || (there && (record->block >= seat->blocks || record->chunk.size > TP_CHUNK_MAX))) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "a chunk record that cannot be");
        return false;
    }
    return there;
}

bool tpc_copier_down(struct tp_conn *conn) {
    struct tpc_seat *seat = conn->seat;
    struct tp_chunk_record record;
    struct tpc_download *download;
    unsigned char *start;
    if (!take_record(conn, &record)) {
        return false;
    }
    if (!tpc_piece_begin(conn, &record.chunk, &download, &start)) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "a chunk of %u bytes at %llu that does not fit transfer %llu",
                 record.chunk.size, (unsigned long long)record.chunk.offset, (unsigned long long)record.chunk.transfer);
        return false;
    }
    if (start) {
        memcpy(start, block_memory(seat, seat->run.down, record.block), record.chunk.size);
    }
    atomic_store_explicit(&seat->slot->down_block[record.block], 0, memory_order_release);
    tp_bell_ring(&seat->slot->session_bell);
    atomic_fetch_add_explicit(&tp_counters.bytes_received, record.chunk.size, memory_order_relaxed);
    if (!tpc_piece_end(conn, download, record.chunk.size, record.chunk.handed)) {
        tpc_lose(conn, TP_ERROR_PROTOCOL, "transfer %llu has more bytes than were asked for",
                 (unsigned long long)record.chunk.transfer);
    }
    return true;
}

/* ---- the threads ---- */

static bool work_left(struct tp_conn *conn) {
    tp_lock_take(&conn->transfers);
    bool left = conn->dealing != NULL;
    tp_lock_drop(&conn->transfers);
    return left || atomic_load_explicit(&conn->downloads_pending, memory_order_seq_cst) > 0;
}

static uint64_t nap_ns(uint64_t since) {
    uint64_t ns = (tp_now_ns() - since) / NAP_PART;
    return ns < NAP_FIRST_NS ? NAP_FIRST_NS : ns > NAP_MOST_NS ? NAP_MOST_NS : ns;
}

static void *copier_run(void *argument) {
    struct tp_conn *conn = argument;
    uint32_t idle = 0;
    uint64_t since = 0; /* when the sleeping in vain began */
    while (!tpc_is_lost(conn)) {
        if (tpc_copier_up(conn) || tpc_copier_down(conn)) {
            idle = 0;
            continue;
        }
        atomic_fetch_add_explicit(&conn->upload_sleepers, 1, memory_order_seq_cst);
        uint32_t news = atomic_load_explicit(&conn->upload_news, memory_order_seq_cst);
        bool park = !work_left(conn), nap = !park && idle >= IDLE_TURNS;
        since = idle == IDLE_TURNS ? tp_now_ns() : since;
        idle = park ? 0 : idle + 1;
        if ((park || nap) && !tpc_is_lost(conn)) {
            tp_futex_wait(&conn->upload_news, news, park ? 0 : nap_ns(since));
        }
        atomic_fetch_sub_explicit(&conn->upload_sleepers, 1, memory_order_seq_cst);
        if (!nap && idle % 64 == 63) {
            sched_yield();
        } else {
            tp_pause();
        }
    }
    return NULL;
}

enum tp_status tpc_copiers_start(struct tp_conn *conn) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t wanted = cores < 2 ? 1 : (uint32_t)cores / 2;
    wanted = wanted > COPIERS_MAX ? COPIERS_MAX : wanted;
    wanted = wanted > conn->seat->blocks ? conn->seat->blocks : wanted;
    for (uint32_t i = 0; i < wanted; i++) {
        if (tp_thread_start(NULL, "tf-copy", 256u << 10, copier_run, conn) != TP_OK) {
            if (i == 0) {
                tpc_lose(conn, TP_ERROR_MEMORY, "a thread could not be started");
                return TP_ERROR_MEMORY;
            }
            break;
        }
        atomic_store_explicit(&conn->lanes, i + 1, memory_order_release);
    }
    return TP_OK;
}
