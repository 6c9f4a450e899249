/*
 * Reaching the worker: addresses, connecting with a time limit, greeting and welcome.
 *
 * Owns nothing but the sockets until they are handed to the connection. Entered by the one thread that makes the connection
 * or opens data connections. The welcome is the worker's: it is read whole, its text is cut to printable characters before it
 * is shown, and its numbers are bounded.
 */
#include "conn_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <tpg_schema.h>
#include <unistd.h>

#define CONNECT_NS 5000000000u
/* A worker without a ready session starts one: a context alone takes a third of a second, a busy host many times that. */
#define WELCOME_NS 30000000000u

TP_EXPORT void tp_schema_hash(unsigned char out[16]);
void tp_schema_hash(unsigned char out[16]) { memcpy(out, tpg_schema_hash, 16); }

/* A non-blocking connect to one address; -1 with errno set. */
static int connect_one(const struct addrinfo *address, uint64_t deadline) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    int error = 0;
    if (connect(fd, address->ai_addr, address->ai_addrlen) != 0) {
        error = errno;
    }
    while (error == EINPROGRESS || error == EINTR) {
        uint64_t now = tp_now_ns();
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        int ready = now < deadline ? poll(&wait, 1, (int)((deadline - now) / 1000000u) + 1) : 0;
        if (ready == 0) {
            error = ETIMEDOUT;
        } else if (ready > 0) {
            socklen_t size = sizeof error;
            if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
                error = errno;
            }
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
    int rc = getaddrinfo(to->host, port, &hints, &list);
    if (rc != 0 && rc != EAI_AGAIN) { /* AI_ADDRCONFIG hides the loopback address on a host without a network */
        hints.ai_flags = AI_NUMERICSERV;
        rc = getaddrinfo(to->host, port, &hints, &list);
    }
    if (rc != 0) {
        snprintf(why, why_size,
                 "The host name '%s' of the GPU worker cannot be resolved (%s); check the connection string.", to->host,
                 gai_strerror(rc));
        return TP_ERROR_UNREACHABLE;
    }
    uint64_t deadline = tp_now_ns() + CONNECT_NS;
    int fd = -1, error = ETIMEDOUT;
    size_t left = 0;
    for (const struct addrinfo *a = list; a; a = a->ai_next) {
        left++;
    }
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next, left--) {
        uint64_t now = tp_now_ns(); /* an address that swallows packets must leave time for the others */
        fd = connect_one(a, now < deadline ? now + (deadline - now) / left : now);
        error = errno;
    }
    freeaddrinfo(list);
    if (fd < 0) {
        snprintf(why, why_size,
                 "No GPU worker answers at %s port %u (%s); check that tensor-fusion-worker runs there and that "
                 "the port is open.",
                 to->host, to->port, strerror(error));
        return TP_ERROR_UNREACHABLE;
    }
    tp_net_tune(fd, bulk);
    *out = fd;
    return TP_OK;
}

static void program_name(char *name, size_t size) {
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, name, size - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    name[n > 0 ? n : 0] = 0;
    name[strcspn(name, "\n")] = 0;
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
                                     .index = index,
                                     .process = (uint32_t)getpid()};
    memcpy(greeting->schema, tpg_schema_hash, sizeof greeting->schema);
    memcpy(greeting->secret, to->secret, sizeof greeting->secret);
    memcpy(greeting->connection_version, to->version, sizeof greeting->connection_version);
    program_name(greeting->program, sizeof greeting->program);
}

enum tp_status tpc_check_welcome(const struct tp_conn *conn, const struct tp_welcome *welcome, char *why,
                                 size_t why_size) {
    if (memcmp(welcome->magic, TP_MAGIC, sizeof welcome->magic) != 0) {
        snprintf(why, why_size, "What answers at %s is no tensor-fusion-worker; check the connection string.",
                 conn->peer);
        return TP_ERROR_REFUSED;
    }
    if (welcome->status != TP_ACCEPTED) {
        char sentence[sizeof welcome->sentence + 1];
        copy_sentence(sentence, sizeof sentence, welcome->sentence, sizeof welcome->sentence);
        snprintf(why, why_size, "The GPU worker at %s refused the connection: %s", conn->peer,
                 sentence[0] ? sentence : "it gave no reason.");
        return TP_ERROR_REFUSED;
    }
    if (welcome->version != TP_PROTOCOL || memcmp(welcome->schema, tpg_schema_hash, sizeof welcome->schema) != 0) {
        snprintf(why, why_size,
                 "The GPU worker at %s speaks protocol %u with another schema than this client's protocol %u: install "
                 "the same version of tensor-fusion on both sides.",
                 conn->peer, welcome->version, TP_PROTOCOL);
        return TP_ERROR_REFUSED;
    }
    return TP_OK;
}

static enum tp_status greet(struct tp_conn *conn, int fd, uint32_t role, uint32_t index, struct tp_welcome *welcome,
                            char *why, size_t why_size) {
    const struct tp_endpoint *to = &conn->endpoint;
    struct tp_greeting greeting;
    tpc_greeting(conn, to, role, index, &greeting);

    uint64_t deadline = tp_now_ns() + WELCOME_NS;
    /* A worker that refuses at once may close before all is sent: its welcome still says why. */
    tp_net_send_all(fd, &greeting, sizeof greeting, deadline);
    if (tp_net_receive_all(fd, welcome, sizeof *welcome, deadline) != TP_OK) {
        snprintf(why, why_size,
                 "%s port %u takes connections but gave no welcome (%s); is a tensor-fusion-worker listening there?",
                 to->host, to->port, strerror(errno));
        return TP_ERROR_UNREACHABLE;
    }
    return tpc_check_welcome(conn, welcome, why, why_size);
}

enum tp_status tpc_connect(struct tp_conn *conn) {
    char why[900] = "";
    struct tp_welcome welcome;
    int fd = -1;
    enum tp_status status = tp_config_endpoint(&conn->endpoint, why, sizeof why);
    bool segment = status == TP_OK && conn->endpoint.transport == TP_TRANSPORT_SHMEM;
    if (segment) {
        status = tpc_seat_take(conn, &conn->endpoint, &welcome, why, sizeof why);
    } else if (status == TP_OK) {
        snprintf(conn->peer, sizeof conn->peer, "%s port %u", conn->endpoint.host, conn->endpoint.port);
        status = tpc_connect_any(&conn->endpoint, false, &fd, why, sizeof why);
    }
    if (status == TP_OK && !segment) {
        status = greet(conn, fd, TP_ROLE_CONTROL, 0, &welcome, why, sizeof why);
    }
    if (status != TP_OK) {
        tp_log(TP_ERROR, "%s", why);
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    conn->control = fd;
    conn->session_id = welcome.session_id;
    conn->session_key = welcome.session_key;
    conn->data_max = welcome.data_connections < TP_DATA_CONNECTIONS ? welcome.data_connections : TP_DATA_CONNECTIONS;
    tp_log(TP_INFO, "Connected to the GPU worker at %s, session %llu", conn->peer,
           (unsigned long long)conn->session_id);
    return TP_OK;
}

enum tp_status tpc_connect_data(struct tp_conn *conn, uint32_t index, int *out) {
    char why[900] = "";
    struct tp_welcome welcome;
    int fd = -1;
    enum tp_status status = tpc_connect_any(&conn->endpoint, true, &fd, why, sizeof why);
    if (status == TP_OK) {
        status = greet(conn, fd, TP_ROLE_DATA, index, &welcome, why, sizeof why);
    }
    if (status != TP_OK) {
        tp_log(TP_ERROR, "Data connection %u: %s", index, why);
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    *out = fd;
    return TP_OK;
}
