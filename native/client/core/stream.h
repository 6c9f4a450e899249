/*
 * A connection to the connection string's server: plain, or TLS by the OpenSSL of the system.
 *
 * Used by one thread, while it waits for a worker. What arrives is a stranger's.
 */
#ifndef TPC_STREAM_H
#define TPC_STREAM_H

#include "url.h"

#include <sys/types.h>

#define TPC_CA_VARIABLE "TF_CONNECTION_URL_CA_FILE"

struct tpc_tls;
struct tpc_stream {
    int fd;
    struct tpc_tls *tls; /* NULL: plain */
};

/* stream.c: all end with TP_ERROR_INTERRUPTED when a signal ended the wait, else UNREACHABLE when it may be tried again and
 * CONFIG when that would not help, with a sentence. On failure nothing is left. */
enum tp_status tpc_stream_open(struct tpc_stream *stream, const struct tpc_url *url, const struct tpc_proxy *proxy,
                               char *why, size_t why_size);
enum tp_status tpc_stream_send(struct tpc_stream *stream, const char *data, size_t size, uint64_t deadline);
/* At least one byte: how many. 0: the peer said that this is the end. -1 with errno, EINTR when interrupted. */
ssize_t tpc_stream_receive(struct tpc_stream *stream, char *data, size_t size, uint64_t deadline);
void tpc_stream_close(struct tpc_stream *stream);

/* tls.c: on a connected socket, which stays the caller's. */
enum tp_status tpc_tls_open(struct tpc_tls **tls, int fd, const char *host, char *why, size_t why_size);
enum tp_status tpc_tls_send(struct tpc_tls *tls, const char *data, size_t size, uint64_t deadline);
ssize_t tpc_tls_receive(struct tpc_tls *tls, char *data, size_t size, uint64_t deadline);
void tpc_tls_close(struct tpc_tls *tls);

#endif
