/*
 * What the relay and its self-test share: where to, how long, and the loop that accepts.
 *
 * The settings are copied into each connection, so that threads share nothing.
 */
#ifndef TENSOR_FUSION_BENCH_RELAY_H
#define TENSOR_FUSION_BENCH_RELAY_H

#include <stdint.h>

struct relay {
    char host[256], port[8];
    uint64_t delay_ns; /* one way */
    uint64_t spin_ns;  /* spun instead of slept: before a piece is due, and after traffic, when more is likely */
};

/* Listens on 127.0.0.1; port 0 becomes the port that was free. */
int relay_listen(unsigned *port);
/* Serves for ever. */
void relay_accept(int listener, const struct relay *relay);

#endif
