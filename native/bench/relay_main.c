/*
 * The relay's command line, and its self-test: ping-pong directly and through the relay, what was added stands on standard output.
 *
 * The self-test runs the relay of this process against an echo of this process, so its figure has the relay's own cost in it, and
 * nothing of a worker. Both ends sleep for what they wait for: on a machine of two cores a spinning end would take the relay's
 * core. All peers are local; the echoed bytes are compared.
 */
#include "bench.h"
#include "relay.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PINGS = 500, LEAST_PINGS = 5, PING_BYTES = 64 };
/* Long round trips get fewer pings; what is to be found out about them needs no precision of microseconds. */
static const uint64_t MOST_NS = 1000u * 1000 * 1000;

static void *echo_one(void *argument) {
    int fd = (int)(intptr_t)argument, on = 1;
    char bytes[4096];
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (;;) {
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n <= 0 || send(fd, bytes, (size_t)n, MSG_NOSIGNAL) != n)
            break;
    }
    close(fd);
    return NULL;
}

static void *echo(void *argument) {
    int listener = (int)(intptr_t)argument;
    for (;;) {
        pthread_t thread;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0 || pthread_create(&thread, NULL, echo_one, (void *)(intptr_t)fd))
            fail("The echo of the self-test cannot serve.");
        pthread_detach(thread);
    }
    return NULL;
}

struct listening {
    int listener;
    struct relay relay;
};

static void *accept_for_ever(void *argument) {
    struct listening *l = argument;
    relay_accept(l->listener, &l->relay);
    return NULL;
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Sorted round trips of small messages, each compared with what was sent; how many there are. */
static int ping(unsigned port, uint64_t ns[PINGS]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    unsigned char out[PING_BYTES], in[PING_BYTES];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("The self-test cannot connect to port %u.", port);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    int count = 0;
    uint64_t deadline = now_ns() + MOST_NS;
    for (int i = -1; i < PINGS && (i < LEAST_PINGS || now_ns() < deadline);
         i++) { /* the first carries the handshake's delay and is no sample */
        memset(out, i & 0xff, sizeof out);
        uint64_t begun = now_ns();
        if (send(fd, out, sizeof out, MSG_NOSIGNAL) != (ssize_t)sizeof out)
            fail("The self-test's connection broke.");
        for (size_t have = 0; have < sizeof in;) {
            ssize_t n = recv(fd, in + have, sizeof in - have, 0);
            if (n <= 0)
                fail("The self-test's connection ended.");
            have += (size_t)n;
        }
        if (i >= 0)
            ns[count++] = now_ns() - begun;
        expect_same(in, out, sizeof in, "an echo through the relay");
    }
    close(fd);
    qsort(ns, (size_t)count, sizeof *ns, ascending);
    return count;
}

static int self_test(struct relay relay) {
    static uint64_t direct[PINGS], relayed[PINGS];
    static struct listening listening;
    pthread_t thread;
    unsigned echo_port = 0, relay_port = 0;
    int echo_listener = relay_listen(&echo_port);
    listening.listener = relay_listen(&relay_port);
    strcpy(relay.host, "127.0.0.1");
    snprintf(relay.port, sizeof relay.port, "%u", echo_port);
    listening.relay = relay;
    if (pthread_create(&thread, NULL, echo, (void *)(intptr_t)echo_listener) ||
        pthread_create(&thread, NULL, accept_for_ever, &listening))
        fail("The self-test cannot start its threads.");
    int directs = ping(echo_port, direct), pings = ping(relay_port, relayed);
    double direct_p50 = (double)direct[(directs - 1) / 2] / 1e3;
    double asked = 2.0 * (double)relay.delay_ns / 1e3, p50 = (double)relayed[(pings - 1) / 2] / 1e3;
    printf("{\"asked_us\": %.1f, \"direct_p50_us\": %.1f, \"relayed_min_us\": %.1f, \"relayed_p50_us\": %.1f, "
           "\"relayed_p99_us\": %.1f, \"added_p50_us\": %.1f, \"pings\": %d}\n",
           asked, direct_p50, (double)relayed[0] / 1e3, p50, (double)relayed[(pings * 99 + 99) / 100 - 1] / 1e3,
           p50 - direct_p50, pings);
    return 0;
}

static uint64_t whole(const char *option, const char *text, uint64_t most) {
    char *end = NULL;
    unsigned long long value = text && *text >= '0' && *text <= '9' ? strtoull(text, &end, 10) : 0;
    if (!end || *end || value > most)
        fail("%s is %s; use a whole number up to %llu.", option, text, (unsigned long long)most);
    return value;
}

int relay_main(int argc, char **argv) {
    struct relay relay = {.spin_ns = 100 * 1000};
    const char *to = NULL;
    unsigned port = 0;
    bool test = false, delayed = false;
    for (int i = 0; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(option, "--self-test")) {
            test = true;
            continue;
        }
        if (!value)
            fail("%s needs a value, or is no option of the relay; see tensor-fusion-bench --help.", option);
        if (!strcmp(option, "--listen"))
            port = (unsigned)whole(option, value, 65535);
        else if (!strcmp(option, "--to"))
            to = value;
        else if (!strcmp(option, "--delay-us")) {
            relay.delay_ns = whole(option, value, 10 * 1000 * 1000) * 1000;
            delayed = true;
        } else if (!strcmp(option, "--spin-us"))
            relay.spin_ns = whole(option, value, 1000 * 1000) * 1000;
        else
            fail("Unknown option %s; see tensor-fusion-bench --help.", option);
        i++;
    }
    if (!delayed)
        fail("The relay needs --delay-us, the delay of one way in microseconds.");
    if (test)
        return self_test(relay);
    const char *colon = to ? strrchr(to, ':') : NULL;
    if (!colon || colon == to)
        fail("The relay needs --to HOST:PORT, the worker's address.");
    whole("The port in --to", colon + 1, 65535);
    bool brackets = to[0] == '[' && colon[-1] == ']';
    size_t length = (size_t)(colon - to) - (brackets ? 2 : 0);
    if (length == 0 || length >= sizeof relay.host || strlen(colon + 1) >= sizeof relay.port)
        fail("The relay needs --to HOST:PORT; %s is too long or names no host.", to);
    memcpy(relay.host, to + brackets, length);
    strcpy(relay.port, colon + 1);
    /* whoever reads the port may end before us, by whatever means */
    prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
    int listener = relay_listen(&port);
    printf("ready %u\n", port);
    fflush(stdout);
    relay_accept(listener, &relay);
    return 0;
}
