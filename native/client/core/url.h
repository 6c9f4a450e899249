/*
 * URLs of the connection string's server, redirects from it, and proxies on the way to it.
 *
 * Pure functions over the caller's structures; any thread may enter. Texts are a user's or a stranger's: each is bounded, and
 * holds no byte that could begin another header of a request.
 */
#ifndef TPC_URL_H
#define TPC_URL_H

#include "tp_config.h"

#define TPC_URL_MAX 4096u

struct tpc_url {
    struct tp_endpoint at; /* host without brackets, port */
    bool tls;
    char authority[300];    /* HOST[:PORT] as it was written, for the Host header */
    char path[TPC_URL_MAX]; /* with the query, without the fragment; begins with / */
};
struct tpc_proxy {
    struct tp_endpoint at;
    const char *variable;    /* whose value it is; NULL: no proxy */
    char authorization[700]; /* base64 of user and password, or empty */
};

/* http or https; false with a sentence that begins with `what`. */
bool tpc_url_parse(const char *what, const char *text, struct tpc_url *url, char *why, size_t why_size);
/* Where a Location header in an answer of `from` leads to. */
bool tpc_url_follow(const struct tpc_url *from, const char *location, struct tpc_url *to, char *why, size_t why_size);
bool tpc_url_same_server(const struct tpc_url *a, const struct tpc_url *b);
/* What http_proxy, https_proxy, all_proxy and no_proxy say about the way there; false with a sentence. */
bool tpc_url_proxy(const struct tpc_url *url, struct tpc_proxy *proxy, char *why, size_t why_size);

#endif
