/*
 * The session's data connections: uploads into pinned staging blocks, downloads out of them.
 *
 * Owns the staging blocks and the two threads of each connection. The receiver fills blocks of its own connection's share, the
 * sender takes filled blocks from one queue; the executor moves them between queues under `lock` and allocates, because pinned
 * memory needs the driver's context. Chunk headers are the client's: sizes are bounded before a byte of payload is read, and
 * what a transfer number or offset means is decided by the executor, which knows what it asked for.
 */
#include "link_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define DOWNLOAD_BLOCKS 32u
#define HANDSHAKE_NS 10000000000u

/* ---- queues, under lock ---- */

static void push(struct queue *queue, struct link_block *block) {
    block->next = NULL;
    *(queue->last ? &queue->last->next : &queue->first) = block;
    queue->last = block;
}

static struct link_block *pop(struct queue *queue) {
    struct link_block *block = queue->first;
    if (block) {
        queue->first = block->next;
        queue->last = queue->first ? queue->last : NULL;
    }
    return block;
}

static void remove_after(struct queue *queue, struct link_block *previous, struct link_block *block) {
    *(previous ? &previous->next : &queue->first) = block->next;
    if (queue->last == block) {
        queue->last = previous;
    }
}

static void tell_executor(struct tpw_link *link) {
    atomic_fetch_add_explicit(&link->news, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&link->executor_waits, memory_order_seq_cst)) {
        uint64_t one = 1;
        ssize_t n = write(link->event, &one, sizeof one);
        (void)n; /* full means that it is readable */
    }
}

/* ---- sockets ---- */

static bool wait_socket(struct lane *lane, short events) {
    struct pollfd wait = {.fd = lane->socket, .events = events};
    poll(&wait, 1, 1000);
    return !tpw_link_over(lane->link);
}

/* True when all has come. At the end of the stream `middle` makes it a loss in the middle of a chunk. */
static bool receive_exact(struct lane *lane, void *to, size_t size, bool middle) {
    unsigned char *at = to;
    while (size > 0) {
        ssize_t n = tp_stream_receive(lane->secure, lane->socket, at, size);
        if (n > 0) {
            at += n;
            size -= (size_t)n;
            middle = true;
        } else if (n == 0) {
            tpw_link_fail(lane->link, TP_ERROR_LOST, "the client closed data connection %u%s", lane->index,
                          middle ? ", in the middle of a chunk" : "");
            return false;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_socket(lane, POLLIN)) {
                return false;
            }
        } else if (errno != EINTR) {
            tpw_link_fail(lane->link, tp_secure_status(errno), "receiving on data connection %u failed: %s",
                          lane->index, tp_secure_error(lane->secure, errno));
            return false;
        }
    }
    return true;
}

static bool send_block(struct lane *lane, const struct link_block *block) {
    struct tp_chunk header = {.transfer = block->block.transfer,
                              .offset = block->block.offset,
                              .size = block->block.size,
                              .handed = block->handed};
    size_t sent = 0, total = sizeof header + header.size;
    while (sent < total) {
        struct iovec parts[2];
        size_t count = 0, done = sent > sizeof header ? sent - sizeof header : 0;
        if (sent < sizeof header) {
            parts[count++] = (struct iovec){.iov_base = (char *)&header + sent, .iov_len = sizeof header - sent};
        }
        parts[count++] = (struct iovec){.iov_base = block->block.memory + done, .iov_len = header.size - done};
        ssize_t n = tp_stream_send_parts(lane->secure, lane->socket, parts, count);
        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_socket(lane, POLLOUT)) {
                return false;
            }
        } else if (errno != EINTR) {
            tpw_link_fail(lane->link, TP_ERROR_LOST, "sending on data connection %u failed: %s", lane->index,
                          tp_secure_error(lane->secure, errno));
            return false;
        }
    }
    return true;
}

/* ---- the two threads ---- */

/* A free block of this connection's share; waits for one. NULL when the link is over. */
static struct link_block *free_block(struct lane *lane) {
    struct tpw_link *link = lane->link;
    while (!tpw_link_over(link)) {
        uint32_t news = atomic_load_explicit(&lane->free_news, memory_order_seq_cst);
        bool ask = false;
        tp_lock_take(&link->lock);
        struct link_block *block = lane->free;
        if (block) {
            lane->free = block->next;
        } else if (lane->blocks < TPW_LANE_BLOCKS && !lane->wants_blocks) {
            lane->wants_blocks = true;
            ask = true;
        }
        tp_lock_drop(&link->lock);
        if (block) {
            return block;
        }
        if (ask) {
            atomic_store_explicit(&link->wants_blocks, 1, memory_order_seq_cst);
            tell_executor(link);
        }
        tp_futex_wait(&lane->free_news, news, 0);
    }
    return NULL;
}

/* Of a connection in TLS, by its receiver; the sender waits for it. */
static bool shake_hands(struct lane *lane) {
    const uint64_t until = tp_now_ns() + HANDSHAKE_NS;
    while (lane->secure && !tp_secure_handshake(lane->secure)) {
        const int error = tp_now_ns() < until ? errno : ETIMEDOUT;
        if (error != EAGAIN) {
            tpw_link_fail(lane->link, tp_secure_status(error), "no TLS handshake on data connection %u: %s",
                          lane->index, tp_secure_error(lane->secure, error));
            return false;
        }
        if (!wait_socket(lane, POLLIN)) {
            return false;
        }
    }
    atomic_fetch_add_explicit(&lane->free_news, 1, memory_order_seq_cst);
    tp_futex_wake(&lane->free_news, INT32_MAX);
    return true;
}

static void *receiver_run(void *argument) {
    struct lane *lane = argument;
    struct tpw_link *link = lane->link;
    struct tp_chunk chunk;
    bool greeted = shake_hands(lane);
    while (greeted && receive_exact(lane, &chunk, sizeof chunk, false)) {
        if (chunk.size == 0 || chunk.size > TP_CHUNK_MAX || chunk.transfer == 0 || chunk.handed != 0) {
            tpw_link_fail(link, TP_ERROR_PROTOCOL,
                          "it sent a chunk of %u bytes for transfer %llu on data connection %u", chunk.size,
                          (unsigned long long)chunk.transfer, lane->index);
            break;
        }
        struct link_block *block = free_block(lane);
        if (!block) {
            break;
        }
        block->block.transfer = chunk.transfer;
        block->block.offset = chunk.offset;
        block->block.size = chunk.size;
        bool whole = receive_exact(lane, block->block.memory, chunk.size, true);
        tp_lock_take(&link->lock);
        if (whole) {
            push(&lane->received, block);
        } else {
            TP_PUSH(lane->free, block);
        }
        tp_lock_drop(&link->lock);
        if (!whole) {
            break;
        }
        tell_executor(link);
    }
    tell_executor(link);
    return NULL;
}

static void *sender_run(void *argument) {
    struct lane *lane = argument;
    struct tpw_link *link = lane->link;
    while (lane->secure && !tp_secure_ready(lane->secure) && !tpw_link_over(link)) {
        uint32_t news = atomic_load_explicit(&lane->free_news, memory_order_seq_cst);
        if (!tp_secure_ready(lane->secure) && !tpw_link_over(link)) {
            tp_futex_wait(&lane->free_news, news, 0);
        }
    }
    while (!tpw_link_over(link)) {
        uint32_t news = atomic_load_explicit(&link->send_news, memory_order_seq_cst);
        tp_lock_take(&link->lock);
        struct link_block *block = pop(&link->to_send);
        tp_lock_drop(&link->lock);
        if (!block) {
            tp_futex_wait(&link->send_news, news, 0);
            continue;
        }
        bool sent = send_block(lane, block);
        tp_lock_take(&link->lock);
        TP_PUSH(link->download_free, block);
        tp_lock_drop(&link->lock);
        tell_executor(link);
        if (!sent) {
            break;
        }
    }
    return NULL;
}

/* ---- executor: connections ---- */

enum tp_status tpw_link_add_data(struct tpw_link *link, uint32_t index, int socket, struct tp_secure *secure) {
    if (link->slot || index >= TP_DATA_CONNECTIONS || link->lanes[index].socket >= 0) {
        tp_log(TP_WARN, "A data connection with index %u is refused: %s", index,
               link->slot                     ? "the client uses shared memory"
               : index >= TP_DATA_CONNECTIONS ? "there are 8"
                                              : "it is open already");
        close(socket);
        tp_secure_free(secure);
        return TP_ERROR_PROTOCOL;
    }
    struct lane *lane = &link->lanes[index];
    tp_net_tune(socket, true);
    lane->secure = secure;
    atomic_store(&lane->socket, socket);
    if (tpw_link_over(link)) {
        shutdown(socket, SHUT_RDWR); /* the end may have come before the line above */
    }
    lane->receiver_runs = tp_thread_start(&lane->receiver, "tf-data-in", 256u << 10, receiver_run, lane) == TP_OK;
    lane->sender_runs =
        lane->receiver_runs && tp_thread_start(&lane->sender, "tf-data-out", 256u << 10, sender_run, lane) == TP_OK;
    if (!lane->sender_runs) {
        tpw_link_fail(link, TP_ERROR_MEMORY, "the threads of a data connection could not be started");
        return TP_ERROR_MEMORY;
    }
    link->lanes_open++;
    return TP_OK;
}

bool tpw_link_has_data(const struct tpw_link *link) { return link->slot || link->lanes_open > 0; }

static struct link_block *new_block(struct tpw_link *link, struct lane *lane) {
    struct link_block *block = calloc(1, sizeof *block);
    if (!block) {
        return NULL;
    }
    block->lane = lane;
    block->block.memory = link->allocate(TP_CHUNK_MAX);
    if (!block->block.memory) {
        free(block);
        return NULL;
    }
    return block;
}

static void free_list(struct tpw_link *link, struct link_block *block) {
    while (block) {
        struct link_block *next = block->next;
        link->release(block->block.memory);
        free(block);
        block = next;
    }
}

void tpw_link_close_data(struct tpw_link *link) {
    for (uint32_t i = 0; i < TP_DATA_CONNECTIONS; i++) {
        struct lane *lane = &link->lanes[i];
        if (lane->receiver_runs) {
            pthread_join(lane->receiver, NULL);
        }
        if (lane->sender_runs) {
            pthread_join(lane->sender, NULL);
        }
    }
    for (uint32_t i = 0; i < TP_DATA_CONNECTIONS; i++) {
        struct lane *lane = &link->lanes[i];
        free_list(link, lane->free);
        free_list(link, lane->received.first);
        tp_secure_free(lane->secure);
        if (lane->socket >= 0) {
            close(lane->socket);
        }
    }
    free_list(link, link->download_free);
    free_list(link, link->to_send.first);
    while (link->drops) {
        struct link_drop *next = link->drops->next;
        free(link->drops);
        link->drops = next;
    }
}

/* Grows the share of connections whose receiver waits. One that has blocks already can go on with those. */
static void grow(struct tpw_link *link, struct lane *lane) {
    for (uint32_t i = 0; i < TPW_GROW_BLOCKS && lane->blocks < TPW_LANE_BLOCKS; i++) {
        struct link_block *block = new_block(link, lane);
        if (!block) {
            if (lane->blocks == 0) {
                tpw_link_fail(link, TP_ERROR_MEMORY, "no pinned memory to receive its data into");
            }
            break;
        }
        tp_lock_take(&link->lock);
        TP_PUSH(lane->free, block);
        lane->blocks++;
        tp_lock_drop(&link->lock);
    }
}

/* ---- executor: uploads ---- */

uint32_t tpw_upload_blocks(const struct tpw_link *link) { return link->slot ? tpw_slot_blocks(link) : TPW_LANE_BLOCKS; }

void tpw_upload_done(struct tpw_link *link, struct tpw_block *given) {
    if (link->slot) {
        tpw_slot_upload_done(link, given);
        return;
    }
    struct link_block *block = (struct link_block *)given;
    struct lane *lane = block->lane;
    tp_lock_take(&link->lock);
    block->out = false;
    TP_PUSH(lane->free, block);
    tp_lock_drop(&link->lock);
    atomic_fetch_add_explicit(&lane->free_news, 1, memory_order_seq_cst);
    tp_futex_wake(&lane->free_news, 1);
}

static struct tpw_block *take(struct tpw_link *link, uint64_t transfer, bool waits) {
    if (link->slot) {
        return tpw_slot_upload_take(link, transfer, waits);
    }
    struct link_block *found = NULL;
    tp_lock_take(&link->lock);
    for (uint32_t i = 0; i < TP_DATA_CONNECTIONS && !found; i++) {
        struct queue *queue = &link->lanes[i].received;
        struct link_block *previous = NULL;
        for (struct link_block *block = queue->first; block && !found; previous = block, block = block->next) {
            if (block->block.transfer == transfer) {
                found = block;
                remove_after(queue, previous, block);
            }
        }
    }
    if (found) {
        found->out = true;
    }
    tp_lock_drop(&link->lock);
    return found ? &found->block : NULL;
}

static void serve_drops(struct tpw_link *link) {
    for (struct link_drop **at = &link->drops; *at;) {
        struct link_drop *drop = *at;
        struct tpw_block *block = take(link, drop->transfer, false);
        if (block) {
            drop->left -= block->size < drop->left ? block->size : drop->left;
            tpw_upload_done(link, block);
        }
        if (drop->left == 0) {
            *at = drop->next;
            free(drop);
        } else if (!block) {
            at = &drop->next;
        }
    }
}

void tpw_link_serve_data(struct tpw_link *link) {
    atomic_store_explicit(&link->wants_blocks, 0, memory_order_seq_cst);
    serve_drops(link);
    for (uint32_t i = 0; i < TP_DATA_CONNECTIONS; i++) {
        struct lane *lane = &link->lanes[i];
        tp_lock_take(&link->lock);
        bool wants = lane->wants_blocks;
        tp_lock_drop(&link->lock);
        if (wants) {
            grow(link, lane);
            tp_lock_take(&link->lock);
            lane->wants_blocks = false;
            tp_lock_drop(&link->lock);
            atomic_fetch_add_explicit(&lane->free_news, 1, memory_order_seq_cst);
            tp_futex_wake(&lane->free_news, 1);
        }
    }
}

enum tp_status tpw_upload_drop(struct tpw_link *link, uint64_t transfer, uint64_t size) {
    struct link_drop *drop = size ? malloc(sizeof *drop) : NULL;
    if (size && !drop) {
        tpw_link_fail(link, TP_ERROR_MEMORY, "no memory to drop transfer %llu", (unsigned long long)transfer);
        return TP_ERROR_MEMORY;
    }
    if (drop) {
        *drop = (struct link_drop){.transfer = transfer, .left = size, .next = link->drops};
        link->drops = drop;
        tpw_link_serve_data(link);
    }
    return TP_OK;
}

struct tpw_block *tpw_upload_take(struct tpw_link *link, uint64_t transfer) {
    if (tpw_link_wants_service(link)) {
        tpw_link_serve_data(link);
    }
    struct tpw_block *block = take(link, transfer, true);
    link->received += block ? block->size : 0;
    return block;
}

/* ---- executor: downloads ---- */

uint32_t tpw_download_blocks(const struct tpw_link *link) {
    return link->slot ? tpw_slot_blocks(link) : DOWNLOAD_BLOCKS;
}

struct tpw_block *tpw_download_block(struct tpw_link *link) {
    if (link->slot) {
        return tpw_slot_download_block(link);
    }
    tp_lock_take(&link->lock);
    struct link_block *block = link->download_free;
    if (block) {
        link->download_free = block->next;
    }
    tp_lock_drop(&link->lock);
    if (!block && link->download_blocks < DOWNLOAD_BLOCKS) {
        block = new_block(link, NULL);
        if (block) {
            link->download_blocks++;
        } else if (link->download_blocks == 0) {
            tpw_link_fail(link, TP_ERROR_MEMORY, "no pinned memory to send its data from");
        }
    }
    return block ? &block->block : NULL;
}

void tpw_download_send(struct tpw_link *link, struct tpw_block *block, bool last) {
    if (!tpw_link_has_data(link) || block->size > TP_CHUNK_MAX) {
        tpw_link_fail(link, TP_ERROR_PROTOCOL, "it asked for a transfer but has no data connection");
        tpw_download_drop(link, block);
        return;
    }
    link->sent += block->size;
    uint32_t handed = last ? (uint32_t)++link->handed | TP_CHUNK_HANDED : 0;
    if (link->slot) {
        tpw_slot_download_send(link, block, handed);
        return;
    }
    struct link_block *filled = (struct link_block *)block;
    filled->handed = handed;
    tp_lock_take(&link->lock);
    push(&link->to_send, filled);
    tp_lock_drop(&link->lock);
    atomic_fetch_add_explicit(&link->send_news, 1, memory_order_seq_cst);
    tp_futex_wake(&link->send_news, 1);
}

void tpw_download_drop(struct tpw_link *link, struct tpw_block *block) {
    if (link->slot) {
        tpw_slot_download_drop(link, block);
        return;
    }
    struct link_block *unused = (struct link_block *)block;
    tp_lock_take(&link->lock);
    TP_PUSH(link->download_free, unused);
    tp_lock_drop(&link->lock);
}
