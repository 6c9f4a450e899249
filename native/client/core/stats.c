/*
 * Statistics: counters of the connection; round trips, blocked time and unsupported calls by API function.
 *
 * Owns a fixed table keyed by the address of the function's name, which is a string constant of the library that calls.
 * Any thread adds; nothing is ever removed, so readers need no lock. The file of TF_STATS_PATH is written at exit.
 */
#include "conn_internal.h"
#include "tp_write.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FUNCTIONS 2048u /* power of two above the 1,078 names that can call */

static struct function {
    const char *_Atomic name;
    _Atomic uint64_t count, ns, unsupported;
} functions[FUNCTIONS];
static _Atomic uint64_t fastest = UINT64_MAX;

/* The entry of a function, NULL if the table were full. */
static struct function *entry_of(const char *what) {
    uint32_t at = (uint32_t)(((uintptr_t)what * 0x9e3779b97f4a7c15ull) >> 40);
    for (uint32_t tries = 0; tries < FUNCTIONS; tries++, at++) {
        const char *found = atomic_load_explicit(&functions[at % FUNCTIONS].name, memory_order_acquire);
        if (!found && !atomic_compare_exchange_strong(&functions[at % FUNCTIONS].name, &found, what)) {
            /* `found` now holds the name that another thread put there */
        } else if (!found) {
            found = what;
        }
        if (found == what) {
            return &functions[at % FUNCTIONS];
        }
    }
    return NULL;
}

void tpc_stats_round_trip(const char *what, uint64_t ns) {
    atomic_fetch_add_explicit(&tp_counters.round_trips, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&tp_counters.blocked_ns, ns, memory_order_relaxed);
    uint64_t best = atomic_load_explicit(&fastest, memory_order_relaxed);
    while (ns < best &&
           !atomic_compare_exchange_weak_explicit(&fastest, &best, ns, memory_order_relaxed, memory_order_relaxed)) {
    }
    struct function *entry = entry_of(what);
    if (entry) {
        atomic_fetch_add_explicit(&entry->count, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&entry->ns, ns, memory_order_relaxed);
    }
}

void tp_count_unsupported(const char *name) {
    struct function *entry = entry_of(name);
    if (entry) {
        atomic_fetch_add_explicit(&entry->unsupported, 1, memory_order_relaxed);
    }
}

uint64_t tp_fastest_round_trip(void) { return atomic_load_explicit(&fastest, memory_order_relaxed); }

/* Over shared memory nobody sends frames: what was appended is where the session reads it. */
static uint64_t appended_bytes(void) {
    struct tp_conn *conn = tp_connection_if_any();
    return conn && conn->seat ? atomic_load_explicit(&conn->head, memory_order_relaxed) : 0;
}

struct text {
    char *at;
    size_t size, used;
};

static void add(struct text *t, const char *format, const char *name, uint64_t a, uint64_t b) {
    char piece[256];
    int n = name ? snprintf(piece, sizeof piece, format, name, (unsigned long long)a, (unsigned long long)b)
                 : snprintf(piece, sizeof piece, format, (unsigned long long)a, (unsigned long long)b);
    size_t size = n < 0 ? 0 : (size_t)n < sizeof piece ? (size_t)n : sizeof piece - 1;
    if (t->used + size < t->size) {
        memcpy(t->at + t->used, piece, size + 1);
    }
    t->used += size;
}

static uint64_t value(const _Atomic uint64_t *counter) { return atomic_load_explicit(counter, memory_order_relaxed); }

/* What the kernel calls this process: a program's first 15 characters, which it may have set itself. */
void tpc_program_name(char out[16]) {
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, out, 15);
    out[n > 0 ? n : 0] = 0;
    if (fd >= 0) {
        close(fd);
    }
    for (char *at = out; *at; at++) {
        if (*at == '\n') {
            *at = 0;
            break;
        }
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\') {
            *at = '?';
        }
    }
}

size_t tp_stats_json(char *buffer, size_t size) {
    char program[16];
    struct text t = {.at = buffer, .size = size, .used = 0};
    if (size) {
        buffer[0] = 0;
    }
    /* An API call that leaves the client is one frame; what was answered here is not counted, to keep it at nanoseconds. */
    tpc_program_name(program);
    add(&t, "{\"program\": \"%s\", ", program, 0, 0);
    add(&t, "\"calls\": %llu, \"frames\": %llu, ", NULL, value(&tp_counters.frames), value(&tp_counters.frames));
    add(&t, "\"round_trips\": %llu, \"blocked_ns\": %llu, ", NULL, value(&tp_counters.round_trips),
        value(&tp_counters.blocked_ns));
    add(&t, "\"bytes_sent\": %llu, \"bytes_received\": %llu, \"by_function\": {", NULL,
        value(&tp_counters.bytes_sent) + appended_bytes(), value(&tp_counters.bytes_received));
    const char *separator = "";
    for (uint32_t i = 0; i < FUNCTIONS; i++) {
        const char *name = atomic_load_explicit(&functions[i].name, memory_order_acquire);
        if (name && value(&functions[i].count)) {
            add(&t, "%s", separator, 0, 0);
            add(&t, "\"%s\": {\"round_trips\": %llu, \"blocked_ns\": %llu}", name, value(&functions[i].count),
                value(&functions[i].ns));
            separator = ", ";
        }
    }
    add(&t, "%s", "}, \"unsupported\": {", 0, 0);
    separator = "";
    for (uint32_t i = 0; i < FUNCTIONS; i++) {
        const char *name = atomic_load_explicit(&functions[i].name, memory_order_acquire);
        if (name && value(&functions[i].unsupported)) {
            add(&t, "%s", separator, 0, 0);
            add(&t, "\"%s\": %llu", name, value(&functions[i].unsupported), 0);
            separator = ", ";
        }
    }
    add(&t, "%s", "}}", 0, 0);
    return t.used;
}

bool tpc_path_from(const char *variable, char *out, size_t size) {
    const char *from = getenv(variable);
    size_t used = 0;
    if (!from || !*from) {
        return false;
    }
    while (*from && used + 24 < size) {
        if (from[0] == '%' && from[1] == 'p') {
            used += (size_t)snprintf(out + used, size - used, "%d", (int)getpid());
            from += 2;
        } else {
            out[used++] = *from++;
        }
    }
    out[used] = 0;
    return *from == 0;
}

void tpc_stats_forget(void) {
    memset(&tp_counters, 0, sizeof tp_counters);
    memset(functions, 0, sizeof functions);
    atomic_store(&fastest, UINT64_MAX);
}

void tpc_stats_at_exit(void) {
    char path[1024];
    if (tpc_forked() || !tpc_path_from("TF_STATS_PATH", path, sizeof path)) {
        return;
    }
    size_t size = tp_stats_json(NULL, 0) + 4096; /* other threads may still count */
    char *text = malloc(size);
    int fd = text ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    if (fd < 0) {
        tp_log(TP_ERROR, "TF_STATS_PATH=%s cannot be written", path);
    } else {
        size_t length = tp_stats_json(text, size);
        if (length < size) {
            text[length] = '\n';
            ssize_t written = tp_write(fd, text, length + 1);
            (void)written;
        }
        close(fd);
    }
    free(text);
}
