/* See stream.h. Reaches the server, through a proxy where the environment names one. */
#include "stream.h"

#include "conn_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PROXY_NS 30000000000u /* it connects on our behalf before it answers */

/* Asks the proxy for a way through to the server. */
static enum tp_status tunnel(int fd, const struct tpc_url *url, const struct tpc_proxy *proxy, char *why,
                             size_t why_size) {
    char request[1800], answer[4096];
    bool six = strchr(url->at.host, ':') != NULL;
    int length = snprintf(request, sizeof request, "CONNECT %s%s%s:%u HTTP/1.1\r\nHost: %s%s%s:%u\r\n%s%s%s\r\n",
                          six ? "[" : "", url->at.host, six ? "]" : "", url->at.port, six ? "[" : "", url->at.host,
                          six ? "]" : "", url->at.port, proxy->authorization[0] ? "Proxy-Authorization: Basic " : "",
                          proxy->authorization, proxy->authorization[0] ? "\r\n" : "");
    uint64_t deadline = tp_now_ns() + PROXY_NS;
    tpc_wait_for(PROXY_NS, "the proxy %s port %u (%s) to reach %s", proxy->at.host, proxy->at.port, proxy->variable,
                 url->at.host);
    enum tp_status status = tp_net_send_all(fd, request, (size_t)length, deadline);
    size_t size = 0;
    ssize_t n = 1;
    /* Byte by byte: what follows the empty line is the server's. */
    while (status == TP_OK && n == 1 && size + 1 < sizeof answer &&
           (size < 4 || memcmp(answer + size - 4, "\r\n\r\n", 4) != 0)) {
        n = tpc_wait_receive(NULL, fd, answer + size, 1, deadline);
        size += n == 1;
    }
    answer[size] = 0;
    if (n < 0 && errno == EINTR) {
        return TP_ERROR_INTERRUPTED;
    }
    int minor, code = 0;
    if (status != TP_OK || n != 1 || size + 1 == sizeof answer || sscanf(answer, "HTTP/1.%d %d", &minor, &code) != 2) {
        snprintf(why, why_size, "The proxy %s port %u, which %s names, gives no answer that a proxy gives",
                 proxy->at.host, proxy->at.port, proxy->variable);
        return size > 0 && strncmp(answer, "HTTP/1.", size < 7 ? size : 7) != 0 ? TP_ERROR_CONFIG
                                                                                : TP_ERROR_UNREACHABLE;
    }
    if (code == 200) {
        return TP_OK;
    }
    bool again = code >= 502 && code <= 504;
    snprintf(why, why_size, "The proxy %s port %u, which %s names, answered %d for %s port %u: %s", proxy->at.host,
             proxy->at.port, proxy->variable, code, url->at.host, url->at.port,
             again         ? "it does not get through to there"
             : code == 407 ? "it wants a user and a password, as in http://USER:PASSWORD@HOST:PORT"
                           : "it does not let this through; a name in no_proxy goes around it");
    return again ? TP_ERROR_UNREACHABLE : TP_ERROR_CONFIG;
}

enum tp_status tpc_stream_open(struct tpc_stream *stream, const struct tpc_url *url, const struct tpc_proxy *proxy,
                               char *why, size_t why_size) {
    *stream = (struct tpc_stream){.fd = -1};
    const struct tp_endpoint *to = proxy->variable ? &proxy->at : &url->at;
    enum tp_status status = tpc_connect_any(to, false, &stream->fd, why, why_size);
    if (status == TP_ERROR_UNREACHABLE) {
        snprintf(why, why_size, "Nobody answers at %s port %u, which %s names", to->host, to->port,
                 proxy->variable ? proxy->variable : "TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL");
    }
    if (status == TP_OK && url->tls && proxy->variable) {
        status = tunnel(stream->fd, url, proxy, why, why_size);
    }
    if (status == TP_OK && url->tls) {
        status = tpc_tls_open(&stream->tls, stream->fd, url->at.host, why, why_size);
    }
    if (status != TP_OK) {
        tpc_stream_close(stream);
    }
    return status;
}

enum tp_status tpc_stream_send(struct tpc_stream *stream, const char *data, size_t size, uint64_t deadline) {
    return stream->tls ? tpc_tls_send(stream->tls, data, size, deadline)
                       : tp_net_send_all(stream->fd, data, size, deadline);
}

ssize_t tpc_stream_receive(struct tpc_stream *stream, char *data, size_t size, uint64_t deadline) {
    return stream->tls ? tpc_tls_receive(stream->tls, data, size, deadline)
                       : tpc_wait_receive(NULL, stream->fd, data, size, deadline);
}

void tpc_stream_close(struct tpc_stream *stream) {
    if (stream->tls) {
        tpc_tls_close(stream->tls);
    }
    if (stream->fd >= 0) {
        close(stream->fd);
    }
    *stream = (struct tpc_stream){.fd = -1};
}
