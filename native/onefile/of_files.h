/* The two halves of the starter: what the file brings, and the folder that it is unpacked into. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROGRAM "tensor-fusion-worker"
#define NAME_LENGTH 32 /* digits of the hash that names a folder */

/* What tools/release.py has put behind the starter's own bytes, as it lies in memory. */
struct payload {
    const unsigned char *at, *end; /* the entries */
    char name[NAME_LENGTH + 1];
};

struct entry {
    char path[256];
    const unsigned char *bytes;
    size_t size;
    bool is_program;
};

/* Say one sentence behind the program's name. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* Find the payload of the file that runs. False when it is not whole, which has been said. */
bool payload_open(struct payload *payload);
/* The next entry and true; false behind the last. Every length has been checked by payload_open. */
bool payload_next(struct payload *payload, struct entry *entry);

/* Open the cache of one place, made if it is missing, when no other user can write to it. Else -1, which has been said. */
int cache_open(const char *base, const char *below, char path[PATH_MAX]);
/* Bring the payload's folder into the cache, locked for as long as this process and what it becomes live. False, and said, if not. */
bool cache_fill(int cache, const char *path, const struct payload *payload);
