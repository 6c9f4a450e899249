/*
 * The session's link over a slot of the shared segment: two byte rings in place of the control connection, staging blocks and
 * rings of records in place of the data connections.
 *
 * Owns this side's view of the slot (struct tpw_slot, private memory). Executor thread only, except for tpw_slot_upload_done
 * and tpw_slot_wake. The client can write every byte of the slot and of its run at any time: indices are bounded by tp_ring.h,
 * frames and records are copied out before anybody looks at them, and where blocks lie follows from the supervisor's words
 * alone. Payload is never looked at here; it changes under the copy engine at the client's own expense.
 */
#include "link_internal.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <tp_segment.h>

#define SPIN_NS                                                                                                        \
    20000u /* in the middle of a frame the client is copying the next block: waking up costs more than that */
#define OUTPUT_WAIT_NS 1000000u /* a client that gives room in the reply ring need not ring */

struct slot_block {
    struct tpw_block block; /* first: the executor holds pointers to it */
    /* Uploads: named by a record and not given back. Downloads: with the executor. */
    _Atomic bool taken;
    bool waits; /* uploads: the executor has not asked for it yet */
};

struct tpw_slot {
    struct tp_slot *shared;
    struct tp_ring commands, replies, chunks_up, chunks_down;
    struct tp_nap nap;
    uint64_t spin;
    uint32_t blocks;
    bool lacking;    /* a download block was asked for in vain since the last sleep */
    bool death_seen; /* it ends one sleep; then whoever waits for the client fails by itself */
    struct slot_block up[TP_BLOCKS_MAX], down[TP_BLOCKS_MAX];
};

enum tp_status tpw_link_open_slot(struct tpw_link **out, unsigned char *base, uint32_t slot, uint32_t first,
                                  uint32_t blocks) {
    struct tpw_link *link = tpw_link_make();
    struct tpw_slot *own = link ? calloc(1, sizeof *own) : NULL;
    if (link) {
        link->slot = own;
    }
    if (!own || blocks == 0 || blocks > TP_BLOCKS_MAX || slot >= TP_SLOTS) {
        if (link) {
            tpw_link_drop(link);
        }
        return own ? TP_ERROR_PROTOCOL : TP_ERROR_MEMORY;
    }
    struct tp_slot *shared = own->shared = tp_slot_at(base, slot);
    struct tp_run run = tp_run_layout(first, blocks);
    own->commands = tp_ring_make(&shared->commands, base + run.commands, TP_COMMAND_RING);
    own->replies = tp_ring_make(&shared->replies, base + run.replies, TP_REPLY_RING);
    own->chunks_up = tp_ring_make(&shared->chunks_up, base + run.chunks_up, TP_CHUNK_RING);
    own->chunks_down = tp_ring_make(&shared->chunks_down, base + run.chunks_down, TP_CHUNK_RING);
    own->blocks = blocks;
    own->spin = tp_spin_ns(SPIN_NS);
    for (uint32_t i = 0; i < blocks; i++) {
        own->up[i].block.memory = base + run.up + i * (uint64_t)TP_CHUNK_MAX;
        own->down[i].block.memory = base + run.down + i * (uint64_t)TP_CHUNK_MAX;
    }
    char mine[40], client[40];
    tp_boot_id(mine);
    memcpy(client, shared->client_boot_id, sizeof client);
    own->nap.same_kernel = mine[0] && memcmp(mine, client, sizeof mine) == 0;
    *out = link;
    return TP_OK;
}

uint32_t tpw_slot_blocks(const struct tpw_link *link) { return link->slot->blocks; }

/* True when the client's process has ended, or has given the connection up. What it had published before is to be seen by looks that come after. */
static bool client_over(const struct tpw_slot *slot) {
    bool over = tp_life_over(&slot->shared->client_life) ||
                atomic_load_explicit(&slot->shared->left, memory_order_relaxed) != 0;
    atomic_thread_fence(memory_order_seq_cst);
    return over;
}

/* ---- frames and replies ---- */

static uint64_t commands_filled(struct tpw_link *link) {
    struct tp_ring *ring = &link->slot->commands;
    uint64_t filled = tp_ring_filled(ring);
    if (TP_UNLIKELY(ring->broken)) {
        tpw_link_fail(link, TP_ERROR_PROTOCOL, "its index of the command ring cannot be");
    }
    return filled;
}

size_t tpw_slot_receive(struct tpw_link *link, void *to, size_t room) {
    struct tpw_slot *slot = link->slot;
    uint64_t filled = commands_filled(link);
    if (filled == 0) {
        if (TP_LIKELY(!client_over(slot))) {
            return 0;
        }
        filled = commands_filled(link);
        if (filled == 0) {
            tpw_link_fail(link, TP_ERROR_LOST, "the client's process has ended%s",
                          link->input_end > link->input_start ? ", in the middle of a frame" : "");
            return 0;
        }
    }
    size_t size = filled < room ? (size_t)filled : room;
    tp_ring_get(&slot->commands, to, size);
    tp_ring_consume(&slot->commands, size);
    slot->nap.since = 0;
    return size;
}

size_t tpw_slot_send(struct tpw_link *link, const void *bytes, size_t size) {
    struct tpw_slot *slot = link->slot;
    uint64_t room = tp_ring_room(&slot->replies);
    if (TP_UNLIKELY(slot->replies.broken)) {
        tpw_link_fail(link, TP_ERROR_PROTOCOL, "its index of the reply ring cannot be");
    }
    if (room == 0) {
        return 0;
    }
    size = room < size ? (size_t)room : size;
    tp_ring_put(&slot->replies, 0, bytes, size);
    tp_ring_publish(&slot->replies, size);
    tp_bell_ring(&slot->shared->client_bell);
    return size;
}

/* ---- uploads ---- */

/* Takes records over; true when there was one. */
static bool take_records(struct tpw_link *link) {
    struct tpw_slot *slot = link->slot;
    struct tp_ring *ring = &slot->chunks_up;
    bool any = false;
    for (uint64_t filled = tp_ring_filled(ring); filled >= sizeof(struct tp_chunk_record);
         filled -= sizeof(struct tp_chunk_record)) {
        struct tp_chunk_record record;
        tp_ring_get(ring, &record, sizeof record);
        tp_ring_consume(ring, sizeof record);
        struct tp_chunk *chunk = &record.chunk;
        if (chunk->size == 0 || chunk->size > TP_CHUNK_MAX || chunk->transfer == 0 || chunk->handed != 0 ||
            record.block >= slot->blocks) {
            tpw_link_fail(link, TP_ERROR_PROTOCOL, "it named a chunk of %u bytes for transfer %llu in block %u of %u",
                          chunk->size, (unsigned long long)chunk->transfer, record.block, slot->blocks);
            return false;
        }
        struct slot_block *block = &slot->up[record.block];
        if (atomic_load_explicit(&block->taken, memory_order_acquire)) {
            tpw_link_fail(link, TP_ERROR_PROTOCOL, "it filled block %u again, which is still to be read", record.block);
            return false;
        }
        block->block.transfer = chunk->transfer;
        block->block.offset = chunk->offset;
        block->block.size = chunk->size;
        block->waits = true;
        atomic_store_explicit(&block->taken, true, memory_order_relaxed);
        any = true;
    }
    if (TP_UNLIKELY(ring->broken)) {
        tpw_link_fail(link, TP_ERROR_PROTOCOL, "its index of the ring of uploaded chunks cannot be");
    }
    if (any) {
        slot->nap.since = 0;
    }
    return any;
}

static struct tpw_block *find_upload(struct tpw_slot *slot, uint64_t transfer) {
    for (uint32_t i = 0; i < slot->blocks; i++) {
        if (slot->up[i].waits && slot->up[i].block.transfer == transfer) {
            slot->up[i].waits = false;
            return &slot->up[i].block;
        }
    }
    return NULL;
}

struct tpw_block *tpw_slot_upload_take(struct tpw_link *link, uint64_t transfer, bool waits) {
    struct tpw_slot *slot = link->slot;
    bool over = client_over(slot);
    take_records(link);
    if (tpw_link_over(link)) {
        return NULL;
    }
    struct tpw_block *block = find_upload(slot, transfer);
    if (!block && over && waits) {
        tpw_link_fail(link, TP_ERROR_LOST, "the client's process has ended in the middle of a transfer");
    }
    return block;
}

void tpw_slot_upload_done(struct tpw_link *link, struct tpw_block *given) {
    struct slot_block *block = (struct slot_block *)given;
    struct tpw_slot *slot = link->slot;
    /* In this order: the client may name the block again as soon as it sees the word, and then it must not be taken. */
    atomic_store_explicit(&block->taken, false, memory_order_release);
    atomic_store_explicit(&slot->shared->up_block[block - slot->up], 0, memory_order_release);
}

/* ---- downloads ---- */

static bool download_free(const struct tpw_slot *slot, uint32_t i) {
    return !atomic_load_explicit(&slot->down[i].taken, memory_order_relaxed) &&
           atomic_load_explicit(&slot->shared->down_block[i], memory_order_acquire) == 0;
}

static bool some_download_free(const struct tpw_slot *slot) {
    for (uint32_t i = 0; i < slot->blocks; i++) {
        if (download_free(slot, i)) {
            return true;
        }
    }
    return false;
}

struct tpw_block *tpw_slot_download_block(struct tpw_link *link) {
    struct tpw_slot *slot = link->slot;
    bool over = client_over(slot), out = false;
    for (uint32_t i = 0; i < slot->blocks; i++) {
        if (download_free(slot, i)) {
            atomic_store_explicit(&slot->down[i].taken, true, memory_order_relaxed);
            return &slot->down[i].block;
        }
        out |= atomic_load_explicit(&slot->down[i].taken, memory_order_relaxed);
    }
    slot->lacking = true;
    if (over && !out) { /* with some out, the GPU still has to give them back */
        tpw_link_fail(link, TP_ERROR_LOST, "the client's process has ended in the middle of a transfer");
    }
    return NULL;
}

void tpw_slot_download_send(struct tpw_link *link, struct tpw_block *given, uint32_t handed) {
    struct slot_block *block = (struct slot_block *)given;
    struct tpw_slot *slot = link->slot;
    struct tp_chunk_record record = {
        .chunk = {.transfer = given->transfer, .offset = given->offset, .size = given->size, .handed = handed},
        .block = (uint32_t)(block - slot->down)};
    /* There are more records in a ring than blocks, so it is full only for a client that gives unread blocks back. */
    if (tp_ring_room(&slot->chunks_down) < sizeof record) {
        tpw_link_fail(link, TP_ERROR_PROTOCOL, "%s",
                      slot->chunks_down.broken ? "its index of the ring of downloaded chunks cannot be"
                                               : "it gave back blocks whose records it had not read");
        tpw_slot_download_drop(link, given);
        return;
    }
    atomic_store_explicit(&slot->shared->down_block[record.block], 1, memory_order_relaxed);
    tp_ring_put(&slot->chunks_down, 0, &record, sizeof record);
    tp_ring_publish(&slot->chunks_down, sizeof record);
    atomic_store_explicit(&block->taken, false, memory_order_relaxed);
    tp_bell_ring(&slot->shared->client_bell);
}

void tpw_slot_download_drop(struct tpw_link *link, struct tpw_block *given) {
    atomic_store_explicit(&((struct slot_block *)given)->taken, false, memory_order_relaxed);
}

/* ---- sleeping ---- */

/* Whether something came that ends the sleep; takes over what can be taken over in the middle of a frame. */
static bool news(struct tpw_link *link, bool frames) {
    struct tpw_slot *slot = link->slot;
    bool over = client_over(slot), any = take_records(link);
    any |= frames && commands_filled(link) > 0;
    if (slot->lacking && some_download_free(slot)) {
        slot->lacking = false;
        slot->nap.since = 0;
        any = true;
    }
    if (over && !slot->death_seen) {
        slot->death_seen = any = true;
    }
    return any || tpw_link_over(link);
}

static bool readable(int fd) {
    struct pollfd on = {.fd = fd, .events = POLLIN};
    return fd >= 0 && poll(&on, 1, 0) > 0;
}

void tpw_slot_sleep(struct tpw_link *link, int extra_fd, uint64_t timeout_ns, bool frames) {
    struct tpw_slot *slot = link->slot;
    struct tp_bell *bell = &slot->shared->session_bell;
    uint64_t now = tp_now_ns(), end = now + timeout_ns;
    end = end < timeout_ns ? UINT64_MAX : end;
    /* Without the rare descriptor the caller is in the middle of a frame. */
    uint64_t spin_end = extra_fd < 0 ? now + (slot->spin < timeout_ns ? slot->spin : timeout_ns) : now;
    tpw_link_flush(link);
    for (; now < spin_end; now = tp_now_ns()) {
        if (news(link, frames)) {
            goto awake;
        }
        tp_pause();
    }
    for (;;) {
        tp_bell_arm(bell);
        if (news(link, frames) || readable(extra_fd) || now >= end) {
            break;
        }
        uint64_t most = end - now;
        bool waiting = link->output_end > link->output_start;
        tp_bell_wait(bell, &slot->nap, waiting && most > OUTPUT_WAIT_NS ? OUTPUT_WAIT_NS : most);
        tpw_link_flush(link);
        now = tp_now_ns();
    }
    tp_bell_disarm(bell);
awake:
    if (tpw_link_wants_service(link)) {
        tpw_link_serve_data(link);
    }
}

bool tpw_link_nap(struct tpw_link *link, uint64_t ns, uint64_t least_ns) {
    struct tpw_slot *slot = link->slot;
    if (!slot) {
        return false;
    }
    struct tp_bell *bell = &slot->shared->session_bell;
    tp_bell_arm_for(bell, TP_NAPS);
    if (news(link, true)) {
        tp_bell_disarm(bell);
    } else {
        tp_bell_nap(bell, slot->nap.same_kernel ? ns : least_ns); /* else nobody can ring */
    }
    return true;
}

void tpw_slot_wake(struct tpw_link *link) { tp_bell_wake(&link->slot->shared->session_bell); }
