/*
 * The data connections of the client: one sending and one receiving thread each.
 *
 * Owns the sockets' use after the greeting. The sender takes chunks in commit order and sends header and payload straight from
 * the source; the receiver writes payload straight to the destination that transfers.c names for each piece, so a transfer
 * that was cancelled, or belongs to a lost connection, is never written to again. Headers come from the worker and are bounded.
 */
#include "conn_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define SINK_SIZE (64u << 10) /* bytes of cancelled transfers go here, a piece at a time */

/* Waits for the socket; false once the connection is lost. Silence of the peer shows on the control connection. */
static bool wait_socket(const struct tpc_data *data, short events) {
    struct pollfd wait = {.fd = data->socket, .events = events};
    poll(&wait, 1, 1000);
    return !tpc_is_lost(data->conn);
}

static bool send_chunk(struct tpc_data *data, const struct tp_chunk *chunk, const unsigned char *payload) {
    struct tp_chunk header = *chunk;
    size_t sent = 0, total = sizeof header + chunk->size;
    while (sent < total) {
        struct iovec parts[2];
        size_t count = 0;
        if (sent < sizeof header) {
            parts[count++] = (struct iovec){.iov_base = (char *)&header + sent, .iov_len = sizeof header - sent};
        }
        size_t done = sent > sizeof header ? sent - sizeof header : 0;
        parts[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)(payload + done), .iov_len = chunk->size - done};
        ssize_t n = tp_stream_send_parts(data->secure, data->socket, parts, count);
        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_socket(data, POLLOUT)) {
                return false;
            }
        } else if (errno != EINTR) {
            tpc_hear_end(data->conn);
            tpc_lose(data->conn, TP_ERROR_LOST, "sending on data connection %u failed: %s", data->index,
                     tp_secure_error(data->secure, errno));
            return false;
        }
    }
    atomic_fetch_add_explicit(&tp_counters.bytes_sent, total, memory_order_relaxed);
    return true;
}

void *tpc_data_send(void *argument) {
    struct tpc_data *data = argument;
    struct tp_conn *conn = data->conn;
    while (!tpc_is_lost(conn)) {
        struct tpc_upload *upload;
        struct tp_chunk chunk;
        const unsigned char *payload;
        if (tpc_chunk_out(conn, &upload, &chunk, &payload)) {
            if (!send_chunk(data, &chunk, payload)) {
                break;
            }
            tpc_chunk_sent(conn, upload, chunk.size);
            continue;
        }
        atomic_fetch_add_explicit(&conn->upload_sleepers, 1, memory_order_seq_cst);
        uint32_t news = atomic_load_explicit(&conn->upload_news, memory_order_seq_cst);
        tp_lock_take(&conn->transfers);
        bool idle = conn->dealing == NULL;
        tp_lock_drop(&conn->transfers);
        if (idle && !tpc_is_lost(conn)) {
            tp_futex_wait(&conn->upload_news, news, 0);
        }
        atomic_fetch_sub_explicit(&conn->upload_sleepers, 1, memory_order_seq_cst);
    }
    return NULL;
}

/* Some bytes to `to`; 0 when the connection is over. */
static size_t receive_some(struct tpc_data *data, void *to, size_t size) {
    while (!tpc_is_lost(data->conn)) {
        ssize_t n = tp_stream_receive(data->secure, data->socket, to, size);
        if (n > 0) {
            return (size_t)n;
        }
        if (n == 0) {
            tpc_hear_end(data->conn);
            tpc_lose(data->conn, TP_ERROR_LOST, "the worker closed data connection %u", data->index);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            wait_socket(data, POLLIN);
        } else if (errno != EINTR) {
            tpc_hear_end(data->conn);
            tpc_lose(data->conn, TP_ERROR_LOST, "receiving on data connection %u failed: %s", data->index,
                     tp_secure_error(data->secure, errno));
        }
    }
    return 0;
}

static bool receive_header(struct tpc_data *data, struct tp_chunk *chunk) {
    size_t have = 0;
    while (have < sizeof *chunk) {
        size_t n = receive_some(data, (char *)chunk + have, sizeof *chunk - have);
        if (n == 0) {
            return false;
        }
        have += n;
    }
    return true;
}

/* The payload of one chunk, piece by piece: between pieces the transfer may be cancelled. */
static bool receive_payload(struct tpc_data *data, const struct tp_chunk *chunk) {
    struct tp_chunk rest = *chunk;
    for (;;) {
        struct tpc_download *download;
        unsigned char *start;
        if (!tpc_piece_begin(data->conn, &rest, &download, &start)) {
            if (!tpc_is_lost(data->conn)) {
                tpc_lose(data->conn, TP_ERROR_PROTOCOL, "a chunk of %u bytes at %llu that does not fit transfer %llu",
                         chunk->size, (unsigned long long)chunk->offset, (unsigned long long)chunk->transfer);
            }
            return false;
        }
        ssize_t n = 0;
        int error = 0;
        if (rest.size > 0) {
            n = tp_stream_receive(data->secure, data->socket, start ? start : data->sink,
                                  start || rest.size < SINK_SIZE ? rest.size : SINK_SIZE);
            error = n < 0 ? errno : n == 0 ? ECONNRESET : 0;
        }
        size_t got = n > 0 ? (size_t)n : 0;
        bool last = got == rest.size;
        if (!tpc_piece_end(data->conn, download, got, last ? chunk->handed : 0)) {
            tpc_lose(data->conn, TP_ERROR_PROTOCOL, "transfer %llu has more bytes than were asked for",
                     (unsigned long long)chunk->transfer);
            return false;
        }
        if (last) {
            return true;
        }
        rest.offset += got;
        rest.size -= (uint32_t)got;
        if (error == EAGAIN || error == EWOULDBLOCK) {
            if (!wait_socket(data, POLLIN)) {
                return false;
            }
        } else if (error != 0 && error != EINTR) {
            tpc_hear_end(data->conn);
            tpc_lose(data->conn, TP_ERROR_LOST, "receiving on data connection %u failed: %s", data->index,
                     tp_secure_error(data->secure, error));
            return false;
        }
    }
}

void *tpc_data_receive(void *argument) {
    struct tpc_data *data = argument;
    data->sink = malloc(SINK_SIZE);
    if (!data->sink) {
        tpc_lose(data->conn, TP_ERROR_MEMORY, "no memory for data connection %u", data->index);
        return NULL;
    }
    struct tp_chunk chunk;
    while (receive_header(data, &chunk)) {
        if (chunk.size > TP_CHUNK_MAX) {
            tpc_lose(data->conn, TP_ERROR_PROTOCOL, "a chunk of %u bytes", chunk.size);
            break;
        }
        if (!receive_payload(data, &chunk)) {
            break;
        }
        atomic_fetch_add_explicit(&tp_counters.bytes_received, sizeof chunk + chunk.size, memory_order_relaxed);
    }
    return NULL;
}
