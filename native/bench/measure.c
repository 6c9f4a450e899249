/*
 * Series of timed calls, their percentiles, and the JSON objects that carry them.
 *
 * Percentiles are nearest-rank over calls that were timed one by one; one is only given when the series is long enough to have a
 * sample beyond it. What reading the clock costs is stated and not subtracted. The digest is a plain 64-bit mix, against errors
 * and not against forgery. Single-threaded; nobody else writes what is read here.
 */
#include "bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options options = {.budget_s = 0.5, .most_bytes = 256 * MIB, .startups = 5};

static uint64_t digest;
static bool first_series;
static bool skipped;
static bool counted; /* by the counters of this process */
static struct tp_counters_seen {
    uint64_t frames, round_trips, blocked_ns, bytes_sent, bytes_received;
} before;

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fputs("tensor-fusion-bench: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

void expect_same(const void *got, const void *wanted, size_t size, const char *what) {
    if (!memcmp(got, wanted, size))
        return;
    const unsigned char *a = got, *b = wanted;
    size_t at = 0;
    while (a[at] == b[at])
        at++;
    fail("Wrong result of %s: byte %zu of %zu is %#x and should be %#x.", what, at, size, a[at], b[at]);
}

void json_string(const char *text) {
    putchar('"');
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

uint64_t timer_overhead_ns(void) {
    enum { READINGS = 2001 };
    uint64_t gaps[READINGS];
    for (int i = 0; i < READINGS; i++) {
        uint64_t begun = now_ns();
        gaps[i] = now_ns() - begun;
    }
    qsort(gaps, READINGS, sizeof *gaps, ascending);
    return gaps[READINGS / 2];
}

/* ---- series ---- */

void series_open(struct series *s, const char *name, uint64_t bytes, size_t most) {
    *s = (struct series){.name = name, .bytes = bytes, .operations = 1, .most = most};
    s->ns = malloc(most * sizeof *s->ns);
    if (!s->ns)
        fail("There is no memory for %zu samples.", most);
    memset(s->ns, 0, most * sizeof *s->ns); /* the first write to a page is not to be part of a sample */
    s->deadline = now_ns() + (uint64_t)(options.budget_s * 1e9);
}

bool series_wants(const struct series *s) { return s->count < s->most && (s->count < 3 || now_ns() < s->deadline); }

void sample_end_at(struct series *s, uint64_t now) {
    if (driver_counters())
        s->trips += atomic_load_explicit(&driver_counters()->round_trips, memory_order_relaxed);
    if (s->count < s->most)
        s->ns[s->count++] = now - s->begun;
}

/* Nearest rank, in thousandths: the smallest sample that `rank` of 1,000 samples do not exceed. */
static double percentile_us(const struct series *s, size_t rank) {
    size_t at = (s->count * rank + 999) / 1000;
    return (double)s->ns[at ? at - 1 : 0] / 1e3;
}

void series_close(struct series *s) {
    uint64_t total = 0;
    for (size_t i = 0; i < s->count; i++)
        total += s->ns[i];
    qsort(s->ns, s->count, sizeof *s->ns, ascending);
    double operations = (double)s->operations;
    printf("%s{\"name\": ", first_series ? "" : ", ");
    first_series = false;
    json_string(s->name);
    printf(", \"bytes\": %llu, \"samples\": %zu", (unsigned long long)s->bytes, s->count);
    if (s->operations > 1) {
        printf(", \"unit\": \"1/s\", \"value\": %.1f", operations * 1e6 / percentile_us(s, 500));
    } else {
        printf(", \"unit\": \"us\", \"value\": %.4f, \"min\": %.4f, \"mean\": %.4f", percentile_us(s, 500),
               (double)s->ns[0] / 1e3, (double)total / (double)s->count / 1e3);
        if (s->count >= 100)
            printf(", \"p99\": %.4f", percentile_us(s, 990));
        if (s->count >= 1000)
            printf(", \"p99.9\": %.4f", percentile_us(s, 999));
        printf(", \"max\": %.4f", (double)s->ns[s->count - 1] / 1e3);
    }
    if (counted)
        printf(", \"round_trips\": %.6f", (double)s->trips / ((double)s->count * operations));
    putchar('}');
    free(s->ns);
    s->ns = NULL;
}

/* ---- groups ---- */

static struct tp_counters_seen counters_now(void) {
    const struct tp_counters *c = driver_counters();
    return c ? (struct tp_counters_seen){c->frames, c->round_trips, c->blocked_ns, c->bytes_sent, c->bytes_received}
             : (struct tp_counters_seen){0, 0, 0, 0, 0};
}

void group_open(const char *name, bool counts) {
    counted = counts && driver_counters();
    digest = 0x9e3779b97f4a7c15u;
    first_series = true;
    skipped = false;
    before = counters_now();
    printf("{\"group\": ");
    json_string(name);
    printf(", \"series\": [");
}

void group_skip(const char *why, const char *function) {
    skipped = true;
    printf("], \"skipped\": \"%s %s\"", function, why);
}

void group_digest(const void *data, size_t size) {
    const unsigned char *at = data;
    uint64_t word;
    for (; size >= sizeof word; at += sizeof word, size -= sizeof word) {
        memcpy(&word, at, sizeof word);
        digest = (digest ^ word) * 0xff51afd7ed558ccdu;
        digest ^= digest >> 32;
    }
    for (; size; at++, size--)
        digest = (digest ^ *at) * 0x100000001b3u;
}

void group_close(void) {
    if (!skipped)
        printf("], \"digest\": \"%016llx\"", (unsigned long long)digest);
    if (counted) {
        struct tp_counters_seen after = counters_now();
        printf(", \"traffic\": {\"frames\": %llu, \"round_trips\": %llu, \"blocked_ns\": %llu, \"bytes_sent\": %llu, "
               "\"bytes_received\": %llu}",
               (unsigned long long)(after.frames - before.frames),
               (unsigned long long)(after.round_trips - before.round_trips),
               (unsigned long long)(after.blocked_ns - before.blocked_ns),
               (unsigned long long)(after.bytes_sent - before.bytes_sent),
               (unsigned long long)(after.bytes_received - before.bytes_received));
    }
    puts("}");
    fflush(stdout);
}
