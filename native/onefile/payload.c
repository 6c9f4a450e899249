/*
 * What the one file brings: the worker's folder behind the starter's own bytes, as tools/release.py writes it.
 *
 *     starter | entry, entry, … | trailer
 *     entry:    size (8 bytes), length of the path (4), 1 for a program (4), the path, the bytes
 *     trailer:  16 bytes of magic, offset of the first entry (8), number of entries (8), 32 digits of the hash
 *
 * Numbers are little-endian. Whoever runs the file trusts it, but a copy can be cut short: all lengths are looked at before one is used.
 */
#include "of_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char MAGIC[16] = "tf-one-file 0001";
#define TRAILER 64
#define HEADER 16

void say(const char *format, ...) {
    char text[2 * PATH_MAX];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    dprintf(STDERR_FILENO, PROGRAM ": %s\n", text);
}

static uint64_t number(const unsigned char *at, size_t bytes) {
    uint64_t value = 0;
    memcpy(&value, at, bytes);
    return value;
}

/* A path below the folder, without a step out of it. */
static bool is_inside(const char *path) {
    if (!*path || *path == '/')
        return false;
    for (const char *part = path; part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL) {
        size_t length = strcspn(part, "/");
        if (!length || (length == 1 && part[0] == '.') || (length == 2 && part[0] == '.' && part[1] == '.'))
            return false;
    }
    return true;
}

bool payload_next(struct payload *payload, struct entry *entry) {
    size_t left = (size_t)(payload->end - payload->at);
    if (left < HEADER)
        return false;
    uint64_t size = number(payload->at, 8), length = number(payload->at + 8, 4);
    if (!length || length >= sizeof entry->path || length > left - HEADER || size > left - HEADER - length)
        return false;
    memcpy(entry->path, payload->at + HEADER, length);
    entry->path[length] = 0;
    entry->is_program = number(payload->at + 12, 4) == 1;
    entry->bytes = payload->at + HEADER + length;
    entry->size = size;
    payload->at = entry->bytes + size;
    return strlen(entry->path) == length && is_inside(entry->path);
}

static bool is_whole(const unsigned char *file, size_t size, struct payload *payload) {
    if (size < TRAILER || memcmp(file + size - TRAILER, MAGIC, sizeof MAGIC) != 0)
        return false;
    const unsigned char *trailer = file + size - TRAILER;
    uint64_t begin = number(trailer + 16, 8), count = number(trailer + 24, 8);
    memcpy(payload->name, trailer + 32, NAME_LENGTH);
    payload->name[NAME_LENGTH] = 0;
    if (begin > size - TRAILER || strspn(payload->name, "0123456789abcdef") != NAME_LENGTH)
        return false;
    payload->at = file + begin;
    payload->end = trailer;
    struct payload rest = *payload;
    struct entry entry;
    while (count && payload_next(&rest, &entry))
        count--;
    return !count && rest.at == rest.end;
}

bool payload_open(struct payload *payload) {
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status)) {
        say("its own file cannot be read (/proc/self/exe): %s; is /proc mounted?", strerror(errno));
        return false;
    }
    size_t size = (size_t)status.st_size;
    unsigned char *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED) {
        say("its own file cannot be read: %s.", strerror(errno));
        return false;
    }
    close(file);
    if (!is_whole(bytes, size, payload)) {
        say("this file is not whole; copy it again, and compare it with SHA256SUMS of its release.");
        return false;
    }
    return true;
}
