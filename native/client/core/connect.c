/*
 * Reaching the worker: addresses, connecting with a time limit, greeting and welcome.
 *
 * Owns nothing but the sockets until they are handed to the connection. Entered by the one thread that makes the connection
 * or opens data connections. The welcome is the worker's: it is read whole, its text is cut to printable characters before it
 * is shown, and its numbers are bounded.
 */
#include "conn_internal.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <tp_records.h>
#include <tpg_schema.h>
#include <unistd.h>

#define CONNECT_NS 5000000000u
#define SESSION_NS 90000000000u /* for so long a worker lets the driver of many GPUs start */
#define RESOLVE_NS 30000000000u /* what a resolver takes that asks three servers twice; it is not cut off */
/* The worker answers before a session is ready: whoever says nothing for so long is none. Its data connections are known to be
 * a worker's, which may be busy. */
#define WELCOME_NS 10000000000u
#define DATA_WELCOME_NS 30000000000u
/* A worker that many connect to at once may drop a connection before it has read its greeting. */
#define TRIES 6u
#define PAUSE_NS 20000000u /* before the second try; each pause is twice that before it */

TP_EXPORT void tp_schema_hash(unsigned char out[16]);
void tp_schema_hash(unsigned char out[16]) { memcpy(out, tpg_schema_hash, 16); }

/* A non-blocking connect to one address; -1 with errno set: EINTR when the wait was interrupted. */
static int connect_one(const struct addrinfo *address, uint64_t deadline) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    int error = connect(fd, address->ai_addr, address->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS || error == EINTR) {
        error = tpc_wait_ready(fd, POLLOUT, deadline);
        socklen_t size = sizeof error;
        if (error == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
            error = errno;
        }
    }
    if (error) {
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

enum tp_status tpc_connect_any(const struct tp_endpoint *to, bool bulk, int *out, char *why, size_t why_size) {
    char port[16];
    snprintf(port, sizeof port, "%u", to->port);
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    tpc_wait_for(RESOLVE_NS, "the address of '%s' from the name server", to->host);
    int rc = tpc_wait_resolve(to->host, port, &hints, &list);
    bool interrupted = rc == EAI_SYSTEM && errno == EINTR;
    if (rc != 0 && rc != EAI_AGAIN && !interrupted) { /* AI_ADDRCONFIG hides the loopback address without a network */
        hints.ai_flags = AI_NUMERICSERV;
        rc = tpc_wait_resolve(to->host, port, &hints, &list);
        interrupted = rc == EAI_SYSTEM && errno == EINTR;
    }
    if (interrupted) {
        return TP_ERROR_INTERRUPTED;
    }
    if (rc != 0) {
        snprintf(why, why_size,
                 "The host name '%s' of the GPU worker cannot be resolved (%s); check the connection string.", to->host,
                 gai_strerror(rc));
        return TP_ERROR_UNREACHABLE;
    }
    tpc_wait_for(CONNECT_NS, "%s port %u to take a connection", to->host, to->port);
    uint64_t deadline = tp_now_ns() + CONNECT_NS;
    int fd = -1, error = ETIMEDOUT;
    size_t left = 0;
    for (const struct addrinfo *a = list; a; a = a->ai_next) {
        left++;
    }
    for (const struct addrinfo *a = list; a && fd < 0 && error != EINTR; a = a->ai_next, left--) {
        uint64_t now = tp_now_ns(); /* an address that swallows packets must leave time for the others */
        fd = connect_one(a, now < deadline ? now + (deadline - now) / left : now);
        error = errno;
    }
    freeaddrinfo(list);
    if (fd < 0 && error == EINTR) {
        return TP_ERROR_INTERRUPTED;
    }
    if (fd < 0) {
        snprintf(why, why_size,
                 "No GPU worker answers at %s port %u (%s); check that tensor-fusion-worker runs there and that "
                 "the port is open.",
                 to->host, to->port, strerror(error));
        errno = error;
        return TP_ERROR_UNREACHABLE;
    }
    tp_net_tune(fd, bulk);
    *out = fd;
    return TP_OK;
}

static void copy_sentence(char *out, size_t size, const char *text, size_t text_size) {
    size_t n = 0;
    while (n < text_size && n + 1 < size && text[n]) {
        out[n] = (unsigned char)text[n] >= ' ' && text[n] != 127 ? text[n] : '?';
        n++;
    }
    out[n] = 0;
}

void tpc_greeting(const struct tp_conn *conn, const struct tp_endpoint *to, uint32_t role, uint32_t index,
                  struct tp_greeting *greeting) {
    *greeting = (struct tp_greeting){.magic = TP_MAGIC,
                                     .version = TP_PROTOCOL,
                                     .role = role,
                                     .session_id = conn->session_id,
                                     .session_key = conn->session_key,
                                     .index = role == TP_ROLE_DATA ? index : TP_RELEASE,
                                     .process = (uint32_t)getpid()};
    memcpy(greeting->schema, tpg_schema_hash, sizeof greeting->schema);
    memcpy(greeting->secret, to->secret, sizeof greeting->secret);
    memcpy(greeting->connection_version, to->version, sizeof greeting->connection_version);
    tpc_who(greeting);
}

enum tp_status tpc_check_welcome(const struct tp_conn *conn, const struct tp_welcome *welcome, char *why,
                                 size_t why_size) {
    if (memcmp(welcome->magic, TP_MAGIC, sizeof welcome->magic) != 0) {
        snprintf(why, why_size, "What answers at %s is no tensor-fusion-worker; check the connection string.",
                 conn->peer);
        return TP_ERROR_REFUSED;
    }
    if (welcome->version != TP_PROTOCOL) {
        tp_apart(why, why_size, conn->peer, welcome->version, welcome->release);
        return TP_ERROR_REFUSED;
    }
    if (welcome->status != TP_ACCEPTED) {
        char sentence[sizeof welcome->sentence + 1];
        copy_sentence(sentence, sizeof sentence, welcome->sentence, sizeof welcome->sentence);
        snprintf(why, why_size, "The GPU worker at %s refused the connection: %s", conn->peer,
                 sentence[0] ? sentence : "it gave no reason.");
        return TP_ERROR_REFUSED;
    }
    return TP_OK;
}

/* A socket, and what makes a connection with a secret of it. */
struct line {
    int fd;
    struct tp_secure *secure; /* NULL: plain */
};

static void hang_up(struct line *line) {
    tp_secure_free(line->secure);
    if (line->fd >= 0) {
        close(line->fd);
    }
    *line = (struct line){.fd = -1};
}

static enum tp_status no_welcome(const struct tp_endpoint *to, int error, const char *missing, uint64_t most_ns,
                                 char *why, size_t why_size) {
    char silence[40];
    snprintf(silence, sizeof silence, "it was silent for %u s", (unsigned)(most_ns / 1000000000u));
    snprintf(why, why_size,
             "%s port %u takes connections but gave no %s (%s); is a tensor-fusion-worker listening there?", to->host,
             to->port, missing,
             error == 0           ? "it ended the connection"
             : error == ETIMEDOUT ? silence
                                  : strerror(error));
    return error == EINTR ? TP_ERROR_INTERRUPTED : TP_ERROR_UNREACHABLE;
}

/* The welcome, whole. What is none is told at its first bytes: a service that waits for more of us would send no more. */
static enum tp_status receive_welcome(const struct line *line, const struct tp_endpoint *to, uint64_t most_ns,
                                      struct tp_welcome *welcome, bool *dropped, char *why, size_t why_size) {
    char *bytes = (char *)welcome, said[64];
    size_t have = 0;
    uint64_t deadline = tp_now_ns() + most_ns;
    while (have < sizeof *welcome) {
        ssize_t n = tpc_wait_receive(line->secure, line->fd, bytes + have, sizeof *welcome - have, deadline);
        if (n <= 0) {
            *dropped = have == 0 && (n == 0 || errno == ECONNRESET);
            return no_welcome(to, n == 0 ? 0 : errno, "welcome", most_ns, why, why_size);
        }
        have += (size_t)n;
        if (memcmp(bytes, TP_MAGIC, have < sizeof welcome->magic ? have : sizeof welcome->magic) != 0) {
            copy_sentence(said, sizeof said, bytes, strcspn(bytes, "\r\n") < have ? strcspn(bytes, "\r\n") : have);
            snprintf(why, why_size,
                     "What answers at %s port %u is no tensor-fusion-worker: it says '%s'; check the port in the "
                     "connection string.",
                     to->host, to->port, said);
            return TP_ERROR_REFUSED;
        }
    }
    return TP_OK;
}

/* TLS, with the greeting as what the key is named by. A peer that says something else first is let say it in plain: a worker that
 * refuses does. */
static enum tp_status secure(struct line *line, const struct tp_endpoint *to, struct tp_greeting *greeting,
                             bool *dropped, char *why, size_t why_size) {
    unsigned char psk[TP_PSK_SIZE];
    uint64_t deadline = tp_now_ns() + SESSION_NS;
    if (!tp_secure_name(greeting, psk)) {
        snprintf(why, why_size, "There are no random numbers for an encrypted connection (%s).", strerror(errno));
        return TP_ERROR_CONFIG;
    }
    line->secure = tp_secure_client(line->fd, greeting, psk, why, why_size);
    tp_wipe(psk, sizeof psk);
    if (!line->secure) {
        return TP_ERROR_CONFIG;
    }
    for (bool answered = false; !tp_secure_handshake(line->secure);) {
        unsigned char first;
        int error = errno == EAGAIN ? tpc_wait_ready(line->fd, POLLIN, deadline) : errno;
        if (error == EPROTO) {
            snprintf(
                why, why_size,
                "What answers at %s port %u does not know the secret of the connection string, or somebody changes "
                "what is sent (%s); it was not told the secret.",
                to->host, to->port, tp_secure_error(line->secure, error));
            return TP_ERROR_REFUSED;
        }
        if (error) {
            *dropped = !answered && (error == ECONNRESET || error == EPIPE);
            return no_welcome(to, error, "answer in TLS", SESSION_NS, why, why_size);
        }
        const bool came = !answered && recv(line->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
        if (came && !tp_secure_speaks(first)) {
            tp_secure_free(line->secure);
            line->secure = NULL;
            return TP_OK;
        }
        answered |= came;
    }
    return TP_OK;
}

static enum tp_status greet(struct tp_conn *conn, struct line *line, uint32_t role, uint32_t index,
                            struct tp_welcome *welcome, bool *dropped, char *why, size_t why_size) {
    const struct tp_endpoint *to = &conn->endpoint;
    struct tp_greeting greeting;
    tpc_greeting(conn, to, role, index, &greeting);

    uint64_t most_ns = role == TP_ROLE_CONTROL ? WELCOME_NS : DATA_WELCOME_NS;
    tpc_wait_for(most_ns, "the welcome of a tensor-fusion-worker from %s port %u", to->host, to->port);
    enum tp_status status = TP_OK;
    if (to->secret[0]) {
        status = secure(line, to, &greeting, dropped, why, why_size);
    } else {
        /* A worker that refuses at once may close before all is sent: its welcome still says why. */
        tp_net_send_all(line->fd, &greeting, sizeof greeting, tp_now_ns() + WELCOME_NS);
    }
    status = status ? status : receive_welcome(line, to, most_ns, welcome, dropped, why, why_size);
    const bool plain = to->secret[0] && !line->secure;
    if (status == TP_OK && plain && welcome->status == TP_ACCEPTED) {
        snprintf(why, why_size,
                 "What answers at %s port %u goes on without TLS, as no worker does that knows the secret of the "
                 "connection string; it was not told the secret.",
                 to->host, to->port);
        return TP_ERROR_REFUSED;
    }
    status = status == TP_OK ? tpc_check_welcome(conn, welcome, why, why_size) : status;
    if (status == TP_ERROR_REFUSED && plain) {
        size_t end = strlen(why);
        snprintf(why + end, why_size - end,
                 " (A refusal is not encrypted: somebody on the way could have written it.)");
    }
    return status;
}

/* Connects, greets and is welcomed. The line is the caller's whatever comes. */
static enum tp_status connect_and_greet(struct tp_conn *conn, uint32_t role, uint32_t index, struct tp_welcome *welcome,
                                        struct line *line, char *why, size_t why_size) {
    uint64_t pause = PAUSE_NS;
    for (unsigned left = TRIES;; pause *= 2) {
        bool dropped = false;
        *line = (struct line){.fd = -1};
        enum tp_status status = tpc_connect_any(&conn->endpoint, role == TP_ROLE_DATA, &line->fd, why, why_size);
        if (status == TP_ERROR_UNREACHABLE) {
            dropped = errno == ECONNRESET; /* it was reset before we had looked at it */
        } else if (status == TP_OK) {
            status = greet(conn, line, role, index, welcome, &dropped, why, why_size);
        }
        if (!dropped || --left == 0) {
            return status;
        }
        hang_up(line);
        tp_log(TP_DEBUG, "%s It is tried again in %u ms.", why, (unsigned)(pause / 1000000));
        if (!tpc_wait_nap(pause)) {
            return TP_ERROR_INTERRUPTED;
        }
    }
}

enum tp_status tpc_connect(struct tp_conn *conn) {
    char why[900] = "";
    struct tp_welcome welcome;
    struct line line = {.fd = -1};
    enum tp_status status = tp_config_endpoint(&conn->endpoint, why, sizeof why);
    bool segment = status == TP_OK && conn->endpoint.transport == TP_TRANSPORT_SHMEM;
    if (segment) {
        status = tpc_seat_take(conn, &conn->endpoint, &welcome, why, sizeof why);
    } else if (status == TP_OK) {
        snprintf(conn->peer, sizeof conn->peer, "%s port %u", conn->endpoint.host, conn->endpoint.port);
        status = connect_and_greet(conn, TP_ROLE_CONTROL, 0, &welcome, &line, why, sizeof why);
    }
    if (status == TP_ERROR_INTERRUPTED) {
        tpc_wait_sentence(why, sizeof why);
    }
    if (status != TP_OK) {
        tp_log(TP_ERROR, "%s", why);
        hang_up(&line);
        return status;
    }
    conn->control = line.fd;
    conn->secure = line.secure;
    if (memcmp(welcome.schema, tpg_schema_hash, sizeof welcome.schema) != 0) {
        conn->skew = tp_matched_make(conn->peer, welcome.release, TPG_OP_layouts);
        status = conn->skew ? TP_OK : TP_ERROR_MEMORY;
    }
    conn->session_id = welcome.session_id;
    conn->session_key = welcome.session_key;
    conn->data_max = welcome.data_connections < TP_DATA_CONNECTIONS ? welcome.data_connections : TP_DATA_CONNECTIONS;
    tpc_wait_for(SESSION_NS, "the session of the GPU worker at %s", conn->peer);
    tp_log(TP_INFO, "Connected to the GPU worker at %s, session %llu%s", conn->peer,
           (unsigned long long)conn->session_id, conn->secure ? ", in TLS" : "");
    return status;
}

void tpc_look(struct tp_conn *conn) {
    char why[900] = "";
    struct tp_welcome welcome = {.status = TP_ACCEPTED};
    struct line line;
    const enum tp_status status = connect_and_greet(conn, TP_ROLE_LOOK, 0, &welcome, &line, why, sizeof why);
    hang_up(&line);
    if (status == TP_OK || welcome.status == TP_STOPPED) { /* else nothing is known anew */
        tpc_say_stopped(conn, welcome.status == TP_STOPPED);
    }
}

enum tp_status tpc_connect_data(struct tp_conn *conn, struct tpc_data *data) {
    char why[900] = "";
    struct tp_welcome welcome;
    struct line line;
    enum tp_status status = connect_and_greet(conn, TP_ROLE_DATA, data->index, &welcome, &line, why, sizeof why);
    if (status != TP_OK) {
        tp_log(TP_ERROR, "Data connection %u: %s", data->index, why);
        hang_up(&line);
        return status;
    }
    data->socket = line.fd;
    data->secure = line.secure;
    return TP_OK;
}
