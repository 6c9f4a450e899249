/*
 * Fuzzes the parsers that run in the client's process: images, connection strings, and answers of the session.
 *
 * One thread. The first byte of an input picks the parser; the rest lies in memory of exactly its size, so that a read past
 * the end is seen. What a parser says is checked where it promises something: an image's size never passes the limit, a
 * connection string that was taken has a host, and no fault goes without a sentence.
 */
#include "tpg_ops.h"
#include <stdio.h>
#include <stdlib.h>
#include <tp_config.h>
#include <tp_image.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* config.c calls it for URLs, which nothing here has. */
enum tp_status tp_fetch_connection(const char *url, char *text, size_t text_size, char *why, size_t why_size) {
    (void)url, (void)text, (void)text_size, (void)why, (void)why_size;
    abort();
}

static void images(const unsigned char *bytes, size_t size) {
    /* Each magic is one guess too many for many bodies: both containers are tried on all. */
    static const uint32_t magics[] = {TP_FATBIN, 0x464c457fu};
    unsigned char *copy = malloc(size ? size : 1);
    CHECK(copy);
    memcpy(copy, bytes, size);
    CHECK(tp_image_size(copy, size) <= size);
    for (size_t i = 0; i < 2 && size >= sizeof magics[i]; i++) {
        memcpy(copy, &magics[i], sizeof magics[i]);
        CHECK(tp_image_size(copy, size) <= size);
    }
    free(copy);
}

static void connections(const unsigned char *bytes, size_t size) {
    char why[64]; /* shorter than most sentences */
    struct tp_endpoint endpoint;
    char *text = malloc(size + 1);
    CHECK(text);
    memcpy(text, bytes, size);
    text[size] = 0;
    why[0] = 0;
    int fault = tp_parse_connection(text, &endpoint, why, sizeof why);
    CHECK(strnlen(why, sizeof why) < sizeof why);
    if (fault) {
        CHECK(why[0]);
    } else {
        CHECK(endpoint.transport == TP_TRANSPORT_NATIVE ? endpoint.host[0] && endpoint.port > 0 && endpoint.port < 65536
                                                        : endpoint.file[0] && endpoint.megabytes > 0);
        CHECK(strnlen(endpoint.secret, sizeof endpoint.secret) < sizeof endpoint.secret);
        CHECK(strnlen(endpoint.version, sizeof endpoint.version) < sizeof endpoint.version);
    }
    free(text);
}

static size_t bytes_of(const void *bytes, size_t size) {
    size_t sum = 0;
    for (size_t i = 0; i < size; i++) {
        sum += ((const unsigned char *)bytes)[i];
    }
    return sum;
}

/* Every kind of value that an answer can hold; what is decoded is read to its end. */
static void answers(const unsigned char *bytes, size_t size) {
    static volatile size_t sink;
    size_t sum = 0;
    unsigned char *exact = size ? malloc(size) : NULL;
    CHECK(exact || !size);
    if (size) {
        memcpy(exact, bytes, size);
    }
#define DECODE(name, ...)                                                                                              \
    do {                                                                                                               \
        struct tpg_##name##_out out;                                                                                   \
        struct tp_cursor c = tp_cursor_make(exact, size);                                                              \
        tpg_get_##name##_out(&c, &out);                                                                                \
        if (!c.bad) {                                                                                                  \
            sum += (__VA_ARGS__);                                                                                      \
        }                                                                                                              \
    } while (0)
    DECODE(start, bytes_of(out.devices, out.devices_size));
    DECODE(context_info, bytes_of(out.limits, out.limits_count * sizeof *out.limits) +
                             bytes_of(out.results, out.results_count * sizeof *out.results));
    DECODE(image_load, bytes_of(out.kernels, out.kernels_size) + bytes_of(out.info_log, out.info_log_size) +
                           bytes_of(out.error_log, out.error_log_size));
    DECODE(kernel_name, bytes_of(out.name, out.name_size));
    DECODE(function_attributes, bytes_of(out.values, out.values_count * sizeof *out.values));
    DECODE(copy_out, bytes_of(out.data, out.data_size));
    DECODE(event_elapsed, bytes_of(out.results, out.results_count * sizeof *out.results) +
                              bytes_of(out.milliseconds, out.milliseconds_count * sizeof *out.milliseconds));
    sink = sum;
    (void)sink;
    free(exact);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    static void (*const parsers[])(const unsigned char *, size_t) = {images, connections, answers};
    if (size) {
        parsers[data[0] % 3](data + 1, size - 1);
    }
    return 0;
}
