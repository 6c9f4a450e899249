/*
 * Asking a URL for the connection string: TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL.
 *
 * Owns nothing; entered by the one thread that makes the connection. An operator holds the request for up to 5 minutes until
 * a worker runs, so a read waits longer than that; 503, 504 and an operator that does not answer yet are asked again. The
 * answer is a stranger's: it is bounded before it is kept, and only the connection string's own parser interprets it. What will
 * not be better the next time (a page instead of a string, a certificate that nobody knows) ends the wait at once.
 */
#include "conn_internal.h"
#include "stream.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define URL_VARIABLE "TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL"
#define TOKEN_VARIABLE "TENSOR_FUSION_OPERATOR_TOKEN_FILE"
#define POD_TOKEN "/var/run/secrets/kubernetes.io/serviceaccount/token"
#define SECOND 1000000000ull
#define READ_NS (310 * SECOND)       /* the operator's 5 minutes and a little */
#define WORKER_NS (15 * 60 * SECOND) /* asked again and again: time for a node to be added */
#define OPERATOR_NS (60 * SECOND)    /* nobody answers at all: more likely a wrong URL */
#define FIRST_PAUSE_NS (SECOND / 4)
#define LONGEST_PAUSE_NS (10 * SECOND)
#define SEND_NS (10 * SECOND)
#define ANSWER_MAX (64u << 10)
#define REDIRECTS_MAX 5

struct answer {
    char text[ANSWER_MAX + 1];
    size_t size;
    int status;
    char *body;
    bool ended; /* the server said that this is all */
};

/* The bearer token of the pod, empty when there is none. False: one was named but cannot be used. */
static bool read_token(char *token, size_t size, char *why, size_t why_size) {
    const char *path = getenv(TOKEN_VARIABLE);
    bool named = path && *path;
    token[0] = 0;
    int fd = open(named ? path : POD_TOKEN, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, token, size - 1) : -1;
    int error = errno;
    if (fd >= 0) {
        close(fd);
    }
    if (n < 0) {
        if (named) {
            snprintf(why, why_size, TOKEN_VARIABLE " names %s, which cannot be read (%s).", path, strerror(error));
        }
        return !named;
    }
    token[n] = 0;
    token[strcspn(token, "\r\n")] = 0;
    for (const char *c = token; *c; c++) {
        if (*c <= ' ' || *c >= 127) {
            token[0] = 0;
            snprintf(why, why_size, "The token in %s holds characters that no bearer token has.",
                     named ? path : POD_TOKEN);
            return false;
        }
    }
    return true;
}

/* The value of a header, or NULL. Sees the head only: the body is not there yet, or is cut off. */
static const char *header(const struct answer *answer, const char *name) {
    size_t size = strlen(name);
    for (const char *line = strstr(answer->text, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, size) == 0 && line[size] == ':') {
            return line + size + 1 + strspn(line + size + 1, " \t");
        }
    }
    return NULL;
}

/* Takes what has arrived of a chunked body to pieces, in place when `out`: 1 when it is whole, 0 when more is to come, -1 when
 * it cannot be. */
static int unchunk(char *from, const char *end, char *out) {
    for (;;) {
        char *rest;
        char *data = memmem(from, (size_t)(end - from), "\r\n", 2);
        if (!data) {
            return end - from > 100 ? -1 : 0;
        }
        errno = 0;
        unsigned long size = isxdigit((unsigned char)*from) ? strtoul(from, &rest, 16) : ULONG_MAX;
        if (size > ANSWER_MAX) {
            return -1;
        }
        data += 2;
        if (size == 0) {
            if (out) {
                *out = 0;
            }
            return 1;
        }
        if (size + 2 > (size_t)(end - data)) {
            return 0;
        }
        if (memcmp(data + size, "\r\n", 2) != 0) {
            return -1;
        }
        if (out) {
            memmove(out, data, size);
            out += size;
        }
        from = data + size + 2;
    }
}

static bool is_chunked(const struct answer *answer) {
    const char *encoding = header(answer, "transfer-encoding");
    return encoding && strncasecmp(encoding, "chunked", 7) == 0;
}

/* Whether the body is whole: 1, or 0 (more is to come), or -1 when it cannot be one. Its head stands for itself. */
static int is_whole(const struct answer *answer) {
    size_t have = answer->size - (size_t)(answer->body - answer->text);
    const char *length = header(answer, "content-length");
    if (is_chunked(answer)) {
        return unchunk(answer->body, answer->text + answer->size, NULL);
    }
    if (length) {
        return isdigit((unsigned char)*length) ? have >= strtoul(length, NULL, 10) : -1;
    }
    return answer->ended;
}

/* Finds the end of the head, drops an interim one (100 to 199), and parts head and body. False: it is not there yet. */
static bool find_body(struct answer *answer) {
    for (;;) {
        char *end = memmem(answer->text, answer->size, "\r\n\r\n", 4);
        int minor;
        if (!end || sscanf(answer->text, "HTTP/1.%d %d", &minor, &answer->status) != 2) {
            return false;
        }
        if (answer->status < 100 || answer->status > 199) {
            answer->body = end + 4;
            *end = 0;
            return true;
        }
        answer->size -= (size_t)(end + 4 - answer->text);
        memmove(answer->text, end + 4, answer->size + 1);
    }
}

static enum tp_status too_large(const char *address, char *why, size_t why_size) {
    snprintf(why, why_size, "%.300s answers with more than %u KiB, which is no connection string; check the URL.",
             address, ANSWER_MAX >> 10);
    return TP_ERROR_CONFIG;
}

static enum tp_status no_http(const char *address, const struct answer *answer, char *why, size_t why_size) {
    char said[48];
    size_t n = strcspn(answer->text, "\r\n");
    n = n < sizeof said - 1 ? n : sizeof said - 1;
    for (size_t i = 0; i < n; i++) {
        said[i] = (unsigned char)answer->text[i] < ' ' || answer->text[i] == 127 ? '?' : answer->text[i];
    }
    said[n] = 0;
    snprintf(why, why_size, "What answers at %.300s speaks no HTTP: it says '%s'; check the URL.", address, said);
    return TP_ERROR_CONFIG;
}

/* Receives until the answer is whole. */
static enum tp_status receive(struct tpc_stream *stream, const char *address, struct answer *answer, char *why,
                              size_t why_size) {
    static const char protocol[] = "HTTP/1.";
    uint64_t deadline = tp_now_ns() + READ_NS;
    answer->size = 0;
    answer->body = NULL;
    answer->ended = false;
    answer->text[0] = 0;
    for (;;) {
        if (answer->size == ANSWER_MAX) {
            return too_large(address, why, why_size);
        }
        ssize_t n = tpc_stream_receive(stream, answer->text + answer->size, ANSWER_MAX - answer->size, deadline);
        if (n < 0) {
            snprintf(why, why_size, "The answer of %.300s was cut short (%s)", address, strerror(errno));
            return errno == EINTR ? TP_ERROR_INTERRUPTED : TP_ERROR_UNREACHABLE;
        }
        answer->ended = n == 0;
        answer->size += (size_t)n;
        answer->text[answer->size] = 0;
        if (memcmp(answer->text, protocol, answer->size < sizeof protocol - 1 ? answer->size : sizeof protocol - 1) !=
            0) {
            return no_http(address, answer, why, why_size);
        }
        if (answer->body || find_body(answer)) {
            const char *length = header(answer, "content-length");
            if (length && isdigit((unsigned char)*length) && strtoul(length, NULL, 10) > ANSWER_MAX) {
                return too_large(address, why, why_size);
            }
            int whole = is_whole(answer);
            if (whole < 0) {
                snprintf(why, why_size, "The answer of %.300s breaks the rules of HTTP; check the URL.", address);
                return TP_ERROR_CONFIG;
            }
            if (whole) {
                return TP_OK;
            }
        }
        if (answer->ended) {
            snprintf(why, why_size, "The answer of %.300s was cut short", address);
            return TP_ERROR_UNREACHABLE;
        }
    }
}

/* One request, one answer. */
static enum tp_status exchange(const struct tpc_url *url, const char *address, bool with_token, struct answer *answer,
                               char *why, size_t why_size) {
    char token[8192] = "", request[8192 + 2 * TPC_URL_MAX];
    struct tpc_proxy proxy;
    struct tpc_stream stream;
    if ((with_token && !read_token(token, sizeof token, why, why_size)) || !tpc_url_proxy(url, &proxy, why, why_size)) {
        return TP_ERROR_CONFIG;
    }
    bool relayed = proxy.variable && !url->tls; /* the proxy is asked, and is told where to ask */
    int length = snprintf(request, sizeof request,
                          "GET %s%s%s HTTP/1.1\r\nHost: %s\r\nAccept: text/plain, application/json\r\nConnection: "
                          "close\r\nUser-Agent: tensor-fusion\r\n%s%s%s%s%s%s\r\n",
                          relayed ? "http://" : "", relayed ? url->authority : "", url->path, url->authority,
                          token[0] ? "Authorization: Bearer " : "", token, token[0] ? "\r\n" : "",
                          relayed && proxy.authorization[0] ? "Proxy-Authorization: Basic " : "",
                          relayed ? proxy.authorization : "", relayed && proxy.authorization[0] ? "\r\n" : "");
    enum tp_status status = tpc_stream_open(&stream, url, &proxy, why, why_size);
    if (status != TP_OK) {
        return status;
    }
    tpc_wait_for(READ_NS, "an answer of %.300s", address);
    status = tpc_stream_send(&stream, request, (size_t)length, tp_now_ns() + SEND_NS);
    if (status == TP_OK || status == TP_ERROR_LOST) { /* one that hangs up early may have said why */
        status = receive(&stream, address, answer, why, why_size);
    }
    tpc_stream_close(&stream);
    return status;
}

static bool is_redirect(int status) {
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/* Asks, and follows where it is sent. The token is for the server that the user named, and for no other. */
static enum tp_status ask(const char *address, struct answer *answer, char *why, size_t why_size) {
    struct tpc_url *url = malloc(3 * sizeof *url);
    if (!url) {
        return TP_ERROR_MEMORY;
    }
    struct tpc_url *first = url + 1, *next = url + 2;
    enum tp_status status = tpc_url_parse(URL_VARIABLE, address, url, why, why_size) ? TP_OK : TP_ERROR_CONFIG;
    *first = *url;
    for (int hops = 0; status == TP_OK; hops++) {
        status = exchange(url, address, tpc_url_same_server(url, first), answer, why, why_size);
        if (status != TP_OK || !is_redirect(answer->status)) {
            break;
        }
        char location[TPC_URL_MAX + 1], reason[700] = "it does not say where to";
        const char *value = header(answer, "location");
        size_t size = value ? strcspn(value, "\r\n") : 0;
        if (size > 0 && size < sizeof location) {
            memcpy(location, value, size);
            location[size] = 0;
        }
        status = TP_ERROR_CONFIG;
        if (hops == REDIRECTS_MAX) {
            snprintf(reason, sizeof reason, "for the %dth time", REDIRECTS_MAX + 1);
        } else if (size > 0 && size < sizeof location && tpc_url_follow(url, location, next, reason, sizeof reason)) {
            status = url->tls && !next->tls ? TP_ERROR_CONFIG : TP_OK;
            snprintf(reason, sizeof reason, "from https to http, which anybody on the way can read and change");
            *url = *next;
        }
        if (status != TP_OK) {
            snprintf(why, why_size, "%.300s redirects (%d): %s; check the URL.", address, answer->status, reason);
        }
    }
    free(url);
    return status;
}

/* Makes body the decoded content, ended by a zero. */
static void decode_body(struct answer *answer) {
    if (is_chunked(answer)) {
        unchunk(answer->body, answer->text + answer->size, answer->body);
        return;
    }
    const char *length = header(answer, "content-length");
    if (length) {
        answer->body[strtoul(length, NULL, 10)] = 0;
    }
}

/* The value of "key": "value" in a JSON object; plain strings only, which is all that connection strings need. */
static bool json_string(const char *text, const char *key, char *out, size_t size) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *at = strstr(text, quoted);
    if (!at) {
        return false;
    }
    at += strlen(quoted);
    at += strspn(at, " \t\r\n");
    if (*at++ != ':') {
        return false;
    }
    at += strspn(at, " \t\r\n");
    if (*at++ != '"') {
        return false;
    }
    size_t n = 0;
    while (*at && *at != '"') {
        at += *at == '\\' && (at[1] == '/' || at[1] == '"' || at[1] == '\\');
        if (n + 1 >= size) {
            return false;
        }
        out[n++] = *at++;
    }
    out[n] = 0;
    return *at == '"';
}

/* Status 200: TP_OK with `text` filled. Others: UNREACHABLE to be asked again, CONFIG to stop. */
static enum tp_status read_answer(struct answer *answer, const char *url, char *text, size_t text_size, char *why,
                                  size_t why_size) {
    char reason[300] = "";
    decode_body(answer);
    if (answer->status == 200) {
        char *body = answer->body + strspn(answer->body, " \t\r\n");
        if (*body == '{') {
            if (!json_string(body, "connection_url", text, text_size)) {
                snprintf(why, why_size, "The JSON answer of %.300s has no \"connection_url\".", url);
                return TP_ERROR_CONFIG;
            }
        } else if ((size_t)snprintf(text, text_size, "%s", body) >= text_size) {
            snprintf(why, why_size,
                     "The answer of %.300s is too long for a connection string (%zu bytes); check the URL.", url,
                     strlen(body));
            return TP_ERROR_CONFIG;
        }
        return TP_OK;
    }
    json_string(answer->body, "error", reason, sizeof reason);
    for (char *c = reason; *c; c++) {
        *c = (unsigned char)*c < ' ' || *c == 127 ? '?' : *c;
    }
    bool again = answer->status == 503 || answer->status == 504;
    const char *meaning = answer->status == 404 ? "there is no such connection; check its name and namespace"
                          : answer->status == 401
                              ? "this program may not use the connection; check its service account token"
                          : answer->status == 407
                              ? "the proxy wants a user and a password, as in http_proxy=http://USER:PASSWORD@HOST:PORT"
                          : again ? "no worker is ready yet"
                                  : "this is not what an operator answers; check the URL";
    snprintf(why, why_size, "%.300s answered %d: %s%s%s%s", url, answer->status, meaning, reason[0] ? " (" : "", reason,
             reason[0] ? ")" : "");
    return again ? TP_ERROR_UNREACHABLE : TP_ERROR_CONFIG;
}

enum tp_status tp_fetch_connection(const char *address, char *text, size_t text_size, char *why, size_t why_size) {
    struct answer *answer = malloc(sizeof *answer);
    if (!answer) {
        return TP_ERROR_MEMORY;
    }
    uint64_t begin = tp_now_ns(), pause = FIRST_PAUSE_NS, heard = begin;
    uint64_t random = begin ^ (uint64_t)getpid() << 32;
    enum tp_status status;
    for (;;) {
        status = ask(address, answer, why, why_size);
        bool answered = status == TP_OK;
        if (answered) {
            heard = tp_now_ns();
            status = read_answer(answer, address, text, text_size, why, why_size);
        }
        uint64_t now = tp_now_ns(), most = begin + WORKER_NS;
        if (status != TP_ERROR_UNREACHABLE || now > most || now - heard > OPERATOR_NS) {
            break;
        }
        most = answered || heard + OPERATOR_NS > most ? most : heard + OPERATOR_NS;
        tpc_wait_for(most - now, "a GPU worker: %s", why);
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t jittered = pause / 2 + (random >> 33) % (pause / 2); /* a thousand pods must not ask in step */
        if (!tpc_wait_nap(jittered)) {
            status = TP_ERROR_INTERRUPTED;
            break;
        }
        pause = pause * 2 < LONGEST_PAUSE_NS ? pause * 2 : LONGEST_PAUSE_NS;
    }
    free(answer);
    return status;
}
