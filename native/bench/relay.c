/*
 * The delay relay: a TCP forwarder between client and worker that makes a network of a chosen round trip out of a fast one.
 *
 * Every piece received is stamped and sent on half a round trip later, in order, with no limit of bandwidth; a new connection is
 * held for a round trip as its handshake would have been. One thread per connection serves both directions: it sleeps in ppoll until
 * shortly before the next piece is due and spins for the rest, which keeps it within about 20 µs on an idle machine. Bytes are
 * forwarded, never looked at; what they may use is bounded per direction (LANE_BYTES, LANE_PIECES), past which the sender waits.
 */
#include "bench.h"
#include "relay.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define LANE_BYTES ((size_t)64 << 20) /* what is under way: 64 GB/s at 1 ms one way */
#define LANE_PIECES 65536u
#define READ_BYTES ((size_t)256 << 10)

struct piece {
    uint64_t due, end; /* `end`: position behind its last byte, counted since the connection began */
};

struct lane {
    int from, to;
    unsigned char *bytes;
    struct piece *pieces;
    uint64_t received, sent;      /* positions; `received - sent` bytes lie in the ring */
    uint32_t first, last;         /* pieces, counted likewise */
    uint64_t not_before, end_due; /* of the first byte (handshake); of the end of the stream */
    bool ended, shut, blocked;    /* no more to read; end passed on; the receiver does not take more */
};

struct connection {
    struct relay relay;
    int client;
};

static bool lane_open(struct lane *l, int from, int to, uint64_t not_before) {
    *l = (struct lane){.from = from, .to = to, .not_before = not_before};
    l->bytes = mmap(NULL, LANE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    l->pieces = malloc(LANE_PIECES * sizeof *l->pieces);
    if (l->bytes == MAP_FAILED)
        l->bytes = NULL;
    return l->bytes && l->pieces;
}

static void lane_close(struct lane *l) {
    if (l->bytes)
        munmap(l->bytes, LANE_BYTES);
    free(l->pieces);
}

static bool lane_reads(const struct lane *l) {
    return !l->ended && l->received - l->sent < LANE_BYTES && l->last - l->first < LANE_PIECES;
}

/* Takes what is there. False: the connection is broken. */
static bool lane_receive(struct lane *l, uint64_t delay_ns, bool *progress) {
    if (!lane_reads(l))
        return true;
    if (l->received == l->sent && l->received % LANE_BYTES != 0) {
        /* empty: begin at the front again, whose pages are there and in the cache */
        l->received = l->sent = (l->received / LANE_BYTES + 1) * LANE_BYTES;
    }
    size_t at = l->received % LANE_BYTES, room = LANE_BYTES - (l->received - l->sent);
    room = room < LANE_BYTES - at ? room : LANE_BYTES - at;
    ssize_t n = recv(l->from, l->bytes + at, room < READ_BYTES ? room : READ_BYTES, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    uint64_t now = now_ns(), due = (now > l->not_before ? now : l->not_before) + delay_ns;
    *progress = true;
    if (n == 0) {
        l->ended = true;
        l->end_due = due;
        return true;
    }
    l->received += (uint64_t)n;
    l->pieces[l->last++ % LANE_PIECES] = (struct piece){.due = due, .end = l->received};
    return true;
}

/* Passes on what is due. False: the connection is broken. */
static bool lane_send(struct lane *l, uint64_t now, bool *progress) {
    uint64_t until = l->sent;
    for (uint32_t i = l->first; i != l->last && l->pieces[i % LANE_PIECES].due <= now; i++)
        until = l->pieces[i % LANE_PIECES].end;
    while (l->sent < until) {
        size_t at = l->sent % LANE_BYTES, size = until - l->sent;
        size = size < LANE_BYTES - at ? size : LANE_BYTES - at;
        ssize_t n = send(l->to, l->bytes + at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            l->blocked = errno == EAGAIN || errno == EWOULDBLOCK;
            return l->blocked;
        }
        l->blocked = false;
        *progress = true;
        l->sent += (uint64_t)n;
        while (l->first != l->last && l->pieces[l->first % LANE_PIECES].end <= l->sent)
            l->first++;
    }
    if (l->ended && !l->shut && l->sent == l->received && l->end_due <= now) {
        shutdown(l->to, SHUT_WR);
        l->shut = true;
        *progress = true;
    }
    return true;
}

/* When this lane has something to do by itself; UINT64_MAX: it waits for a socket. */
static uint64_t lane_next(const struct lane *l) {
    if (l->blocked)
        return UINT64_MAX;
    if (l->first != l->last)
        return l->pieces[l->first % LANE_PIECES].due;
    return l->ended && !l->shut ? l->end_due : UINT64_MAX;
}

static void forward(int client, int worker, const struct relay *relay) {
    struct lane lanes[2] = {{0}};
    uint64_t accepted = now_ns(), active = accepted, delay = relay->delay_ns;
    if (!lane_open(&lanes[0], client, worker, accepted + 2 * delay) || !lane_open(&lanes[1], worker, client, 0))
        goto out;
    while (!lanes[0].shut || !lanes[1].shut) {
        bool progress = false;
        for (int i = 0; i < 2; i++)
            if (!lane_receive(&lanes[i], delay, &progress) || !lane_send(&lanes[i], now_ns(), &progress))
                goto out;
        uint64_t now = now_ns(), next = lane_next(&lanes[0]), other = lane_next(&lanes[1]);
        next = next < other ? next : other;
        if (progress) {
            active = now;
            continue;
        }
        if (now - active < relay->spin_ns || (next != UINT64_MAX && next < now + relay->spin_ns)) {
            __builtin_ia32_pause();
            continue;
        }
        struct pollfd fds[2] = {{.fd = client}, {.fd = worker}};
        for (int i = 0; i < 2; i++) {
            fds[i].events |= lane_reads(&lanes[i]) ? POLLIN : 0;
            fds[1 - i].events |= lanes[i].blocked ? POLLOUT : 0;
        }
        for (int i = 0; i < 2; i++)
            fds[i].fd = fds[i].events ? fds[i].fd : -1; /* a hang-up alone would wake us for ever */
        uint64_t sleep_ns = next == UINT64_MAX ? 0 : next - now - relay->spin_ns;
        struct timespec timeout = {(time_t)(sleep_ns / 1000000000u), (long)(sleep_ns % 1000000000u)};
        ppoll(fds, 2, next == UINT64_MAX ? NULL : &timeout, NULL);
    }
out:
    lane_close(&lanes[0]);
    lane_close(&lanes[1]);
}

static int connect_to(const struct relay *relay) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int error = getaddrinfo(relay->host, relay->port, &hints, &found), fd = -1;
    if (error) {
        fprintf(stderr, "tensor-fusion-bench: The host %s is not known: %s.\n", relay->host, gai_strerror(error));
        return -1;
    }
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen)) {
            int reason = errno;
            close(fd);
            fd = -1;
            errno = reason;
        }
    }
    if (fd < 0)
        fprintf(stderr, "tensor-fusion-bench: Nobody answers at %s, port %s: %s.\n", relay->host, relay->port,
                strerror(errno));
    freeaddrinfo(found);
    return fd;
}

static void tune(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void *serve(void *argument) {
    struct connection *c = argument;
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    int worker = connect_to(&c->relay);
    if (worker >= 0) {
        tune(c->client);
        tune(worker);
        forward(c->client, worker, &c->relay);
        close(worker);
    }
    close(c->client);
    free(c);
    return NULL;
}

int relay_listen(unsigned *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 128) ||
        getsockname(fd, (struct sockaddr *)&address, &size))
        fail("Port %u of 127.0.0.1 cannot be listened on: %s.", *port, strerror(errno));
    *port = ntohs(address.sin_port);
    return fd;
}

void relay_accept(int listener, const struct relay *relay) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
                continue;
            }
            fail("No more connections can be accepted: %s.", strerror(errno));
        }
        struct connection *c = malloc(sizeof *c);
        pthread_t thread;
        if (c)
            *c = (struct connection){.relay = *relay, .client = fd};
        if (!c || pthread_create(&thread, NULL, serve, c)) {
            fputs("tensor-fusion-bench: There are no resources for one more connection.\n", stderr);
            free(c);
            close(fd);
            continue;
        }
        pthread_detach(thread);
    }
}
