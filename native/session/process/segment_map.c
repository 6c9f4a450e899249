/*
 * The shared segment in the session's address space and in the driver's.
 *
 * Executor thread only. The descriptors are the supervisor's; their sizes are checked, because a page that is not in the file
 * would end the process by a signal.
 */
#include "tpw_session.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tp_segment.h>
#include <unistd.h>

static void *map(const char *what, int fd, uint64_t size, void *address) {
    struct stat file;
    if (fstat(fd, &file) || (uint64_t)file.st_size < size) {
        tp_log(TP_ERROR, "%s has fewer than %llu bytes", what, (unsigned long long)size);
        return NULL;
    }
    int flags = MAP_SHARED | (address ? MAP_FIXED_NOREPLACE : 0);
    void *got = mmap(address, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (got == MAP_FAILED || (address && got != address)) { /* kernels before 4.17 take the address as a hint */
        tp_log(TP_ERROR, "%s cannot be mapped at %p: %s", what, address,
               got == MAP_FAILED ? strerror(errno) : "something else is there");
        return NULL;
    }
    close(fd);
    return got;
}

bool tpw_segment_map(struct tpw_segment *segment, int fd, uint64_t size, int owners) {
    if (size < TP_SEGMENT_MIN || size > TP_SEGMENT_MAX) {
        tp_log(TP_ERROR, "a segment of %llu bytes is not one", (unsigned long long)size);
        return false;
    }
    segment->size = size;
    segment->slot = TP_SLOTS;
    segment->owners = map("the table of owners", owners, TP_OWNERS_BYTES(size), NULL);
    segment->base = segment->owners ? map("the shared segment", fd, size, (void *)TP_SEGMENT_ADDRESS) : NULL;
    if (segment->base && !tp_segment_guard(segment->base, size)) {
        tp_log(TP_WARN, "a truncation of the shared segment would end this session by a signal");
    }
    return segment->base != NULL;
}
