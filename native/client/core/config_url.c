/*
 * Asking a URL for the connection string: TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL.
 *
 * Owns nothing; entered by the one thread that makes the connection. An operator holds the request for up to 5 minutes until
 * a worker runs, so a read waits longer than that; 503, 504 and an operator that does not answer yet are asked again. The
 * answer is a stranger's: it is bounded before it is kept, and only the connection string's own parser interprets it.
 * Plain HTTP with sockets: TLS would need a library that a libc-only client cannot have.
 */
#include "conn_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
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
#define ANSWER_MAX (64u << 10)

struct url {
    struct tp_endpoint at;
    char host_header[300];
    const char *path;
};

struct answer {
    char text[ANSWER_MAX + 1];
    size_t size;
    int status;
    char *body;
};

static bool parse_url(const char *text, struct url *url, char *why, size_t why_size) {
    memset(url, 0, sizeof *url);
    if (strncasecmp(text, "https://", 8) == 0) {
        snprintf(why, why_size,
                 URL_VARIABLE " is %s: https is not supported yet; use an http:// URL, or set "
                              "TENSOR_FUSION_OPERATOR_CONNECTION_INFO to the connection string.",
                 text);
        return false;
    }
    bool good = strncasecmp(text, "http://", 7) == 0 && strlen(text) < 4096;
    for (const char *c = text; *c && good; c++) {
        good = *c > ' ' && *c < 127; /* nothing that could begin another header */
    }
    const char *host = text + 7;
    size_t length = good ? strcspn(host, "/?#") : 0;
    url->path = host + length;
    url->at.port = 80;
    good = good && length > 0 && length < sizeof url->host_header && !memchr(host, '@', length);
    if (good) {
        memcpy(url->host_header, host, length);
        const char *port = NULL;
        char *end = url->host_header[0] == '[' ? strchr(url->host_header, ']') : NULL;
        size_t host_length = length;
        if (end) {
            port = end[1] == ':' ? end + 2 : NULL;
            good = end[1] == ':' || end[1] == 0;
            host_length = (size_t)(end - url->host_header) - 1;
        } else if ((end = strchr(url->host_header, ':')) != NULL) {
            port = end + 1;
            host_length = (size_t)(end - url->host_header);
        }
        if (port) {
            char *rest;
            unsigned long number = strtoul(port, &rest, 10);
            good = good && isdigit((unsigned char)*port) && !*rest && number >= 1 && number <= 65535;
            url->at.port = (uint32_t)number;
        }
        good = good && host_length > 0 && host_length < sizeof url->at.host;
        if (good) {
            memcpy(url->at.host, url->host_header + (url->host_header[0] == '['), host_length);
        }
    }
    if (!good) {
        snprintf(why, why_size, URL_VARIABLE " is '%.500s', which is no URL of the form http://HOST[:PORT]/PATH.",
                 text);
    }
    return good;
}

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

static enum tp_status exchange(const struct url *url, const char *address, struct answer *answer, char *why,
                               size_t why_size) {
    char token[8192], request[16384];
    if (!read_token(token, sizeof token, why, why_size)) {
        return TP_ERROR_CONFIG;
    }
    int length =
        snprintf(request, sizeof request,
                 "GET %s%.*s HTTP/1.1\r\nHost: %s\r\nAccept: text/plain, application/json\r\nConnection: close\r\n"
                 "User-Agent: tensor-fusion\r\n%s%s%s\r\n",
                 *url->path == '/' ? "" : "/", (int)strcspn(url->path, "#"), url->path, url->host_header,
                 token[0] ? "Authorization: Bearer " : "", token, token[0] ? "\r\n" : "");
    int fd = -1;
    enum tp_status status = tpc_connect_any(&url->at, false, &fd, why, why_size);
    if (status != TP_OK && status != TP_ERROR_INTERRUPTED) {
        snprintf(why, why_size, "Nobody answers at " URL_VARIABLE " (%s port %u)", url->at.host, url->at.port);
    }
    if (status != TP_OK) {
        return status;
    }
    tpc_wait_for(READ_NS, "an answer of %.300s", address);
    uint64_t deadline = tp_now_ns() + READ_NS;
    answer->size = 0;
    status = tp_net_send_all(fd, request, (size_t)length, deadline);
    char *head_end = NULL;
    size_t whole = ANSWER_MAX;
    while (status == TP_OK && answer->size < whole) { /* byte by byte: the answer is one line */
        ssize_t n = tpc_wait_receive(fd, answer->text + answer->size, 1, deadline);
        status = n == 1 ? TP_OK : n < 0 && errno == EINTR ? TP_ERROR_INTERRUPTED : TP_ERROR_LOST;
        answer->size += n == 1;
        answer->text[answer->size] = 0;
        if (!head_end && answer->size >= 4 && memcmp(answer->text + answer->size - 4, "\r\n\r\n", 4) == 0) {
            head_end = answer->text + answer->size - 4;
            const char *announced = header(answer, "content-length"); /* not every server closes when asked to */
            unsigned long size = announced ? strtoul(announced, NULL, 10) : ANSWER_MAX;
            whole = size < ANSWER_MAX - answer->size ? answer->size + size : ANSWER_MAX;
        }
    }
    close(fd);
    if (status == TP_ERROR_INTERRUPTED) {
        return status;
    }
    int minor;
    if (!head_end || sscanf(answer->text, "HTTP/1.%d %d", &minor, &answer->status) != 2) {
        snprintf(why, why_size, "The answer of %s port %u is no HTTP", url->at.host, url->at.port);
        return TP_ERROR_UNREACHABLE;
    }
    answer->body = head_end + 4;
    *head_end = 0;
    return TP_OK;
}

/* Makes body the decoded content; false when it is cut short or malformed. */
static bool decode_body(struct answer *answer) {
    size_t have = answer->size - (size_t)(answer->body - answer->text);
    const char *length = header(answer, "content-length");
    const char *encoding = header(answer, "transfer-encoding");
    if (encoding && strncasecmp(encoding, "chunked", 7) == 0) {
        char *from = answer->body, *to = answer->body, *end = answer->body + have;
        for (;;) {
            char *rest;
            unsigned long size = strtoul(from, &rest, 16);
            char *data = strstr(rest, "\r\n");
            if (rest == from || !data) {
                return false;
            }
            if (size == 0) {
                *to = 0;
                return true;
            }
            data += 2;
            if (data > end || size > (size_t)(end - data)) {
                return false;
            }
            memmove(to, data, size);
            to += size;
            from = data + size + strspn(data + size, "\r\n");
        }
    }
    if (length) {
        unsigned long size = strtoul(length, NULL, 10);
        if (size > have) {
            return false;
        }
        answer->body[size] = 0;
    }
    return true;
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
    if (!decode_body(answer)) {
        snprintf(why, why_size, "The answer of %.300s was cut short", url);
        return TP_ERROR_UNREACHABLE;
    }
    if (answer->status == 200) {
        char *body = answer->body + strspn(answer->body, " \t\r\n");
        if (*body == '{') {
            if (!json_string(body, "connection_url", text, text_size)) {
                snprintf(why, why_size, "The JSON answer of %.300s has no \"connection_url\".", url);
                return TP_ERROR_CONFIG;
            }
        } else if ((size_t)snprintf(text, text_size, "%s", body) >= text_size) {
            snprintf(why, why_size, "The answer of %.300s is too long for a connection string.", url);
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
                          : again ? "no worker is ready yet"
                                  : "this is not what an operator answers; check the URL";
    snprintf(why, why_size, "%.300s answered %d: %s%s%s%s", url, answer->status, meaning, reason[0] ? " (" : "", reason,
             reason[0] ? ")" : "");
    return again ? TP_ERROR_UNREACHABLE : TP_ERROR_CONFIG;
}

enum tp_status tp_fetch_connection(const char *address, char *text, size_t text_size, char *why, size_t why_size) {
    struct url url;
    if (!parse_url(address, &url, why, why_size)) {
        return TP_ERROR_CONFIG;
    }
    struct answer *answer = malloc(sizeof *answer);
    if (!answer) {
        return TP_ERROR_MEMORY;
    }
    uint64_t begin = tp_now_ns(), pause = FIRST_PAUSE_NS, heard = begin;
    uint64_t random = begin ^ (uint64_t)getpid() << 32;
    enum tp_status status;
    for (;;) {
        status = exchange(&url, address, answer, why, why_size);
        if (status == TP_OK) {
            heard = tp_now_ns();
            status = read_answer(answer, address, text, text_size, why, why_size);
        }
        uint64_t now = tp_now_ns();
        if (status != TP_ERROR_UNREACHABLE || now - begin > WORKER_NS || now - heard > OPERATOR_NS) {
            break;
        }
        tpc_wait_for(WORKER_NS - (now - begin), "a GPU worker: %s", why);
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
