/*
 * Two ends of an encrypted connection in one process: what they say to each other, and what it costs.
 *
 * pair: bytes in both directions at once from two threads at each end, in sizes that fit nothing, compared at the other end.
 * wrong: ends with different keys. stranger: what is no TLS. records: what RFC 8448 has, and records that are none.
 * echo: serves one client of another make, whose key is 32 bytes of 0x07, and says back what it says.
 * speed, turns: prints nanoseconds of wall clock and of processor time, for a plain connection and for one in TLS.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <tp_openssl.h>
#include <tp_records.h>
#include <tp_secure.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

struct end {
    int fd;
    struct tp_secure *secure;
};

static void connect_pair(struct end *client, struct end *server) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    *client = (struct end){.fd = socket(AF_INET, SOCK_STREAM, 0)};
    CHECK(connect(client->fd, (struct sockaddr *)&address, size) == 0);
    *server = (struct end){.fd = accept(listener, NULL, NULL)};
    CHECK(server->fd >= 0);
    close(listener);
    tp_net_tune(client->fd, true);
    tp_net_tune(server->fd, true);
}

static const struct tp_welcome welcome = {.magic = TP_MAGIC, .version = TP_PROTOCOL, .sentence = "welcome"};

/* False when the server's key is another one; then both ends must say so. */
static bool make_secure(struct end *client, struct end *server, bool same) {
    struct tp_greeting greeting = {.magic = TP_MAGIC, .secret = "sesame"};
    unsigned char psk[TP_PSK_SIZE];
    char why[400] = "";
    CHECK(tp_secure_name(&greeting, psk));
    client->secure = tp_secure_client(client->fd, &greeting, psk, why, sizeof why);
    if (!client->secure) {
        fprintf(stderr, "%s\n", why);
        exit(77);
    }
    psk[0] ^= !same;
    server->secure = tp_secure_server(server->fd, psk, &welcome, why, sizeof why);
    CHECK(server->secure);
    int client_error = EAGAIN, server_error = EAGAIN;
    while ((client_error == EAGAIN || server_error == EAGAIN) && client_error != EPROTO) {
        client_error = tp_secure_handshake(client->secure) ? 0 : errno;
        server_error = server_error != EAGAIN ? server_error : tp_secure_handshake(server->secure) ? 0 : errno;
    }
    if (client_error || server_error) {
        CHECK(client_error == EPROTO && server_error == EPROTO);
        printf("client: %s\nserver: %s\n", tp_secure_error(client->secure, EPROTO),
               tp_secure_error(server->secure, EPROTO));
        return false;
    }
    struct tp_welcome got;
    for (size_t have = 0; have < sizeof got;) {
        ssize_t n = tp_stream_receive(client->secure, client->fd, (char *)&got + have, sizeof got - have);
        CHECK(n > 0 || (n < 0 && errno == EAGAIN));
        have += n > 0 ? (size_t)n : 0;
    }
    CHECK(memcmp(&got, &welcome, sizeof got) == 0);
    return true;
}

static void wait_for(const struct end *end, short events) {
    struct pollfd on = {.fd = end->fd, .events = events};
    if (events != POLLIN || !tp_stream_holds(end->secure)) {
        CHECK(poll(&on, 1, 20000) == 1); /* a wait without end is what the test is for */
    }
}

/* ---- pair ---- */

struct flow {
    struct end *from, *to;
    size_t total;
    uint32_t seed;
};

static uint32_t next(uint32_t *seed) { return *seed = *seed * 1664525u + 1013904223u; }

static unsigned char byte_at(uint32_t seed, size_t at) { return (unsigned char)((at * 2654435761u + seed) >> 13); }

static size_t some_size(uint32_t *seed) {
    static const size_t sizes[] = {1, 7, 24, 500, 16383, 16384, 16385, 70000, 300000};
    return sizes[(next(seed) >> 8) % (sizeof sizes / sizeof *sizes)];
}

static void *send_flow(void *argument) {
    const struct flow *flow = argument;
    unsigned char *bytes = malloc(600000);
    uint32_t seed = flow->seed;
    CHECK(bytes);
    for (size_t sent = 0; sent < flow->total;) {
        size_t first = some_size(&seed), second = some_size(&seed);
        first = first < flow->total - sent ? first : flow->total - sent;
        second = second < flow->total - sent - first ? second : flow->total - sent - first;
        for (size_t i = 0; i < first + second; i++) {
            bytes[i] = byte_at(flow->seed, sent + i);
        }
        for (size_t done = 0; done < first + second;) {
            size_t one = done < first ? first - done : 0, behind = done < first ? 0 : done - first;
            struct iovec parts[2] = {{.iov_base = bytes + done, .iov_len = one},
                                     {.iov_base = bytes + first + behind, .iov_len = second - behind}};
            ssize_t n = tp_stream_send_parts(flow->from->secure, flow->from->fd, parts, 2);
            if (n < 0) {
                CHECK(errno == EAGAIN);
                wait_for(flow->from, POLLOUT);
            }
            done += n > 0 ? (size_t)n : 0;
        }
        sent += first + second;
    }
    free(bytes);
    return NULL;
}

static void *receive_flow(void *argument) {
    const struct flow *flow = argument;
    unsigned char *bytes = malloc(300000);
    uint32_t seed = flow->seed ^ 77;
    CHECK(bytes);
    for (size_t got = 0; got < flow->total;) {
        ssize_t n = tp_stream_receive(flow->to->secure, flow->to->fd, bytes, some_size(&seed));
        if (n < 0) {
            CHECK(errno == EAGAIN);
            wait_for(flow->to, POLLIN);
        } else {
            CHECK(n > 0);
        }
        for (ssize_t i = 0; i < n; i++) {
            CHECK(bytes[i] == byte_at(flow->seed, got + (size_t)i));
        }
        got += n > 0 ? (size_t)n : 0;
        if (next(&seed) % 4 == 0) {
            wait_for(flow->to, got < flow->total ? POLLIN : POLLOUT); /* in the middle, whatever is held */
        }
    }
    free(bytes);
    return NULL;
}

static void pair(size_t total) {
    struct end client, server;
    connect_pair(&client, &server);
    CHECK(make_secure(&client, &server, true));
    struct flow up = {.from = &client, .to = &server, .total = total, .seed = 1};
    struct flow down = {.from = &server, .to = &client, .total = total, .seed = 2};
    pthread_t threads[4];
    CHECK(!pthread_create(&threads[0], NULL, send_flow, &up) && !pthread_create(&threads[1], NULL, send_flow, &down));
    CHECK(!pthread_create(&threads[2], NULL, receive_flow, &up) &&
          !pthread_create(&threads[3], NULL, receive_flow, &down));
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    /* The end of the one is the end that the other sees, after all that was sent. */
    CHECK(tp_stream_send(client.secure, client.fd, "last", 4) == 4);
    tp_secure_free(client.secure);
    close(client.fd);
    char last[8];
    wait_for(&server, POLLIN);
    CHECK(tp_stream_receive(server.secure, server.fd, last, sizeof last) == 4 && memcmp(last, "last", 4) == 0);
    wait_for(&server, POLLIN);
    CHECK(tp_stream_receive(server.secure, server.fd, last, sizeof last) == 0);
    tp_secure_free(server.secure);
    printf("%zu bytes each way\n", total);
}

/* ---- what is no TLS ---- */

static void stranger(void) {
    struct end client, server;
    char why[400];
    connect_pair(&client, &server);
    server.secure = tp_secure_server(server.fd, (const unsigned char[TP_PSK_SIZE]){1}, &welcome, why, sizeof why);
    CHECK(server.secure);
    CHECK(!tp_secure_handshake(server.secure) && errno == EAGAIN);
    CHECK(send(client.fd, "\x16\x03\x01", 3, 0) == 3);
    wait_for(&server, POLLIN);
    CHECK(!tp_secure_handshake(server.secure) && errno == EAGAIN);
    CHECK(send(client.fd, "GET / HTTP/1.1\r\n\r\n", 18, 0) == 18);
    wait_for(&server, POLLIN);
    CHECK(!tp_secure_handshake(server.secure) && errno == EPROTO);
    char byte;
    CHECK(tp_stream_receive(server.secure, server.fd, &byte, 1) < 0 && errno == EPROTO);
    CHECK(tp_stream_send(server.secure, server.fd, &byte, 1) < 0 && errno == ENOTCONN);
    printf("server: %s\n", tp_secure_error(server.secure, EPROTO));
    tp_secure_free(server.secure);
}

/* ---- records ---- */

static void records(void) {
    /* RFC 8448, 3: the secret of the client's application data, and its record of the bytes 0 to 49. */
    static const unsigned char secret[] = {0x9e, 0x40, 0x64, 0x6c, 0xe7, 0x9a, 0x7f, 0x9d, 0xc0, 0x5a, 0xf8,
                                           0x88, 0x9b, 0xce, 0x65, 0x52, 0x87, 0x5a, 0xfa, 0x0b, 0x06, 0xdf,
                                           0x00, 0x87, 0xf7, 0x92, 0xeb, 0xb7, 0xc1, 0x75, 0x04, 0xa5};
    static const unsigned char record[] = {
        0x17, 0x03, 0x03, 0x00, 0x43, 0xa2, 0x3f, 0x70, 0x54, 0xb6, 0x2c, 0x94, 0xd0, 0xaf, 0xfa, 0xfe, 0x82, 0x28,
        0xba, 0x55, 0xcb, 0xef, 0xac, 0xea, 0x42, 0xf9, 0x14, 0xaa, 0x66, 0xbc, 0xab, 0x3f, 0x2b, 0x98, 0x19, 0xa8,
        0xa5, 0xb4, 0x6b, 0x39, 0x5b, 0xd5, 0x4a, 0x9a, 0x20, 0x44, 0x1e, 0x2b, 0x62, 0x97, 0x4e, 0x1f, 0x5a, 0x62,
        0x92, 0xa2, 0x97, 0x70, 0x14, 0xbd, 0x1e, 0x3d, 0xea, 0xe6, 0x3a, 0xee, 0xbb, 0x21, 0x69, 0x49, 0x15, 0xe4};
    unsigned char plain[50], out[200], bad[sizeof record];
    char why[400];
    size_t size = 0;
    if (!tp_openssl_open("A test", "", why, sizeof why)) {
        exit(77);
    }
    for (size_t i = 0; i < sizeof plain; i++) {
        plain[i] = (unsigned char)i;
    }
    struct tp_half seals = {0}, opens = {0};
    CHECK(tp_half_begin(&seals, secret, true) && tp_half_begin(&opens, secret, false));
    const struct tp_piece pieces[] = {{.start = plain, .size = 7}, {.start = plain + 7, .size = 43}};
    CHECK(tp_seal(&seals, false, pieces, 2, out) == sizeof record && memcmp(out, record, sizeof record) == 0);
    CHECK(tp_record_size(record) == sizeof record && tp_open(&opens, out, &size) == TP_OPENED_DATA);
    CHECK(size == sizeof plain && memcmp(out + TP_RECORD_HEAD, plain, size) == 0);
    /* The same once more is another record's; so is one with any bit changed. */
    memcpy(out, record, sizeof record);
    CHECK(tp_open(&opens, out, &size) == TP_OPENED_WRONG);
    for (size_t bit = 8 * TP_RECORD_HEAD; bit < 8 * sizeof record; bit++) {
        struct tp_half fresh = {0};
        memcpy(bad, record, sizeof bad);
        bad[bit / 8] ^= (unsigned char)(1u << bit % 8);
        CHECK(tp_half_begin(&fresh, secret, false) && tp_open(&fresh, bad, &size) == TP_OPENED_WRONG);
        CHECK(bad[TP_RECORD_HEAD] == 0 && bad[20] == 0); /* nothing of it stays */
        tp_half_end(&fresh);
    }
    /* Sizes and kinds that no record has. */
    static const unsigned char heads[][TP_RECORD_HEAD] = {
        {0x17, 3, 3, 0, 16}, {0x17, 3, 3, 0x41, 1}, {0x17, 3, 3, 255, 255}, {0x16, 3, 3, 0, 67}, {0x17, 3, 1, 0, 67}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        CHECK(tp_record_size(heads[i]) == 0);
    }
    /* A change of keys goes before the record, and is opened first. */
    tp_half_end(&seals);
    tp_half_end(&opens);
    CHECK(tp_half_begin(&seals, secret, true) && tp_half_begin(&opens, secret, false));
    CHECK(tp_seal(&seals, true, pieces, 2, out) == 27 + sizeof record);
    CHECK(tp_record_size(out) == 27 && tp_open(&opens, out, &size) == TP_OPENED_NOTHING);
    CHECK(tp_open(&opens, out + 27, &size) == TP_OPENED_DATA && size == sizeof plain);
    tp_half_end(&seals);
    tp_half_end(&opens);
}

static void echo_other(void) {
    unsigned char key[TP_PSK_SIZE], bytes[70000];
    char why[400];
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    struct end end = {.fd = accept(listener, NULL, NULL)};
    tp_net_tune(end.fd, false);
    memset(key, 7, sizeof key);
    end.secure = tp_secure_server(end.fd, key, &welcome, why, sizeof why);
    CHECK(end.secure);
    for (ssize_t n;;) {
        n = tp_stream_receive(end.secure, end.fd, bytes, sizeof bytes);
        if (n > 0) {
            CHECK(tp_stream_send(end.secure, end.fd, bytes, (size_t)n) == n);
        } else if (n == 0) {
            break;
        } else if (errno == EAGAIN) {
            wait_for(&end, POLLIN);
        } else {
            fprintf(stderr, "%s\n", tp_secure_error(end.secure, errno));
            exit(1);
        }
    }
    tp_secure_free(end.secure);
}

/* ---- cost ---- */

static uint64_t processor_ns(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000u +
           (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000u;
}

struct bulk {
    struct end *end;
    size_t total, piece;
};

static void *drain(void *argument) {
    const struct bulk *bulk = argument;
    unsigned char *to = malloc(bulk->piece);
    CHECK(to);
    for (size_t got = 0; got < bulk->total;) {
        ssize_t n = tp_stream_receive(bulk->end->secure, bulk->end->fd, to, bulk->piece);
        if (n < 0) {
            CHECK(errno == EAGAIN);
            wait_for(bulk->end, POLLIN);
        }
        got += n > 0 ? (size_t)n : 0;
    }
    free(to);
    return NULL;
}

static void speed(bool secure, size_t total, size_t piece) {
    struct end client, server;
    pthread_t thread;
    unsigned char *from = malloc(piece);
    CHECK(from);
    memset(from, 7, piece);
    connect_pair(&client, &server);
    CHECK(!secure || make_secure(&client, &server, true));
    struct bulk bulk = {.end = &server, .total = total, .piece = piece};
    uint64_t wall = tp_now_ns(), used = processor_ns();
    CHECK(!pthread_create(&thread, NULL, drain, &bulk));
    for (size_t sent = 0; sent < total;) {
        size_t done = sent % piece;
        ssize_t n = tp_stream_send(client.secure, client.fd, from + done,
                                   piece - done < total - sent ? piece - done : total - sent);
        if (n < 0) {
            CHECK(errno == EAGAIN);
            wait_for(&client, POLLOUT);
        }
        sent += n > 0 ? (size_t)n : 0;
    }
    pthread_join(thread, NULL);
    wall = tp_now_ns() - wall;
    used = processor_ns() - used;
    printf("%s %zu %.3f %.3f\n", secure ? "tls" : "plain", total, (double)wall / (double)total,
           (double)used / (double)total);
    free(from);
}

struct echo {
    struct end *end;
    size_t turns, size;
};

static void whole(const struct end *end, void *bytes, size_t size, bool out) {
    for (size_t done = 0; done < size;) {
        ssize_t n = out ? tp_stream_send(end->secure, end->fd, (char *)bytes + done, size - done)
                        : tp_stream_receive(end->secure, end->fd, (char *)bytes + done, size - done);
        CHECK(n > 0 || (n < 0 && errno == EAGAIN));
        done += n > 0 ? (size_t)n : 0;
    }
}

static void *echo(void *argument) {
    const struct echo *echo = argument;
    char bytes[4096];
    for (size_t i = 0; i < echo->turns; i++) {
        whole(echo->end, bytes, echo->size, false);
        whole(echo->end, bytes, echo->size, true);
    }
    return NULL;
}

static void turns(bool secure, size_t count, size_t size) {
    struct end client, server;
    pthread_t thread;
    char bytes[4096] = "";
    connect_pair(&client, &server);
    CHECK(size <= sizeof bytes && (!secure || make_secure(&client, &server, true)));
    struct echo other = {.end = &server, .turns = count, .size = size};
    uint64_t *took = malloc(count * sizeof *took);
    CHECK(took && !pthread_create(&thread, NULL, echo, &other));
    for (size_t i = 0; i < count; i++) {
        uint64_t begin = tp_now_ns();
        whole(&client, bytes, size, true);
        whole(&client, bytes, size, false);
        took[i] = tp_now_ns() - begin;
    }
    pthread_join(thread, NULL);
    for (size_t i = 1; i < count; i++) { /* the middle one */
        for (size_t k = i; k > 0 && took[k - 1] > took[k]; k--) {
            uint64_t other_time = took[k];
            took[k] = took[k - 1];
            took[k - 1] = other_time;
        }
    }
    printf("%s %zu %llu %llu\n", secure ? "tls" : "plain", size, (unsigned long long)took[count / 2],
           (unsigned long long)took[count / 10]);
    free(took);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    size_t first = count > 2 ? strtoul(words[2], NULL, 10) : 0, second = count > 3 ? strtoul(words[3], NULL, 10) : 0;
    if (strcmp(what, "pair") == 0) {
        pair(first);
    } else if (strcmp(what, "wrong") == 0) {
        struct end client, server;
        connect_pair(&client, &server);
        CHECK(!make_secure(&client, &server, false));
        tp_secure_free(client.secure);
        tp_secure_free(server.secure);
    } else if (strcmp(what, "stranger") == 0) {
        stranger();
    } else if (strcmp(what, "records") == 0) {
        records();
    } else if (strcmp(what, "echo") == 0) {
        echo_other();
    } else if (strcmp(what, "speed") == 0 || strcmp(what, "turns") == 0) {
        for (int secure = 0; secure < 2; secure++) {
            (what[0] == 's' ? speed : turns)(secure, first, second);
        }
    } else {
        fprintf(stderr, "usage: test_secure pair BYTES | wrong | stranger | records | echo | speed BYTES PIECE | turns "
                        "COUNT SIZE\n");
        return 2;
    }
    return 0;
}
