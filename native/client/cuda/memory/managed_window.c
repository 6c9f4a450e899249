/*
 * The pages of managed memory: the range of device addresses that this process keeps free, mapped twice.
 *
 * At the device's addresses the program may touch what it is given; at a second place, which nobody is told, we may touch all of
 * it, and what we read and write there is the same. Pages exist once they are touched, so the size of the range costs nothing. A child of
 * fork has neither mapping, as natively, and no core file holds them. Owns the file behind both, which has no name. Any thread
 * opens it, under a lock; the server alone looks for its pages.
 */
#include "tpc_managed.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SEEK_DATA
#define SEEK_DATA 3
#define SEEK_HOLE 4
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define CLOSE_ON_EXEC 1u /* MFD_CLOEXEC */

static struct tp_lock lock;
static uint64_t start;       /* 0 until it is open */
static unsigned char *alias; /* of `start` */
static int file = -1;
static struct stat identity; /* a program may close all descriptors, and have another file under the number */

/* glibc before 2.33 has no fstat to link with. */
static long look(int descriptor, struct stat *out) { return syscall(SYS_fstat, descriptor, out); }

/* Of that size, or -1: then the pages have no file, and none of them is known to be untouched. */
static int make_file(uint64_t size) {
    struct rlimit limit; /* beyond it the kernel ends the process */
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < size)) {
        return -1;
    }
    int made = (int)syscall(SYS_memfd_create, "tensor-fusion-managed", CLOSE_ON_EXEC);
    if (made >= 0 && (ftruncate(made, (off_t)size) != 0 || look(made, &identity) != 0)) {
        close(made);
        made = -1;
    }
    return made;
}

/* What is mapped at `base` once more, where we may touch it; NULL with *why. */
static unsigned char *map_twice(void *base, uint64_t size, const char **why) {
    void *second = mremap(base, 0, size, MREMAP_MAYMOVE); /* of size 0: the same pages once more */
    if (second == MAP_FAILED) {
        *why = "the kernel maps no memory twice";
        return NULL;
    }
    void *both[] = {base, second};
    bool able = mprotect(second, size, PROT_READ | PROT_WRITE) == 0;
    for (size_t i = 0; i < 2 && able; i++) {
        able = madvise(both[i], size, MADV_DONTFORK) == 0 && madvise(both[i], size, MADV_DONTDUMP) == 0;
    }
    if (!able) {
        munmap(second, size);
        *why = "the kernel keeps no such range of addresses";
    }
    return able ? second : NULL;
}

static const char *map(uint64_t base, uint64_t size) {
    const char *why = NULL;
    file = make_file(size);
    const int flags = MAP_SHARED | MAP_NORESERVE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
    if (mmap((void *)(uintptr_t)base, size, PROT_NONE, flags, file, 0) == MAP_FAILED) {
        return "the kernel maps no memory there";
    }
    alias = map_twice((void *)(uintptr_t)base, size, &why);
    start = alias ? base : 0;
    return why;
}

unsigned char *tpc_window_extra(uint64_t base, uint64_t size) {
    const char *why = NULL;
    void *wanted = (void *)(uintptr_t)base;
    void *got = mmap(wanted, size, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    unsigned char *second = got == wanted ? map_twice(got, size, &why) : NULL;
    if (!second && got != MAP_FAILED) { /* a kernel before 4.17 takes the address as a hint */
        munmap(got, size);
    }
    return second;
}

bool tpc_window_open(void) {
    static bool tried;
    static _Atomic bool said;
    uint64_t base = 0, size = 0;
    tp_lock_take(&lock);
    if (!tried) {
        tried = true;
        const char *why = tpc_reserved(&base, &size) ? map(base, size) : "this process has something else there";
        if (!why && !tpc_managed_watch(base, size)) {
            start = 0;
            why = "a thread could not be started";
        }
        if (why) {
            tp_say_once(&said,
                        "managed memory is not supported in this process, because %s (addresses 0x%llx to 0x%llx)", why,
                        (unsigned long long)base, (unsigned long long)(base + size));
        }
    }
    bool open = start != 0;
    tp_lock_drop(&lock);
    return open;
}

unsigned char *tpc_window_alias(uint64_t address) { return alias + (address - start); }

bool tpc_window_data(const struct tpc_managed *m, uint64_t *begin, uint64_t *end) {
    struct stat now;
    const uint64_t at = m->start - start;
    if (file < 0 || look(file, &now) != 0 || now.st_dev != identity.st_dev || now.st_ino != identity.st_ino) {
        return true; /* nothing is known: all of it */
    }
    const off_t data = lseek(file, (off_t)(at + *begin), SEEK_DATA);
    if (data < 0) {
        return errno != ENXIO; /* no data from there on; else nothing is known */
    }
    if ((uint64_t)data >= at + *end) {
        return false;
    }
    const off_t hole = lseek(file, data, SEEK_HOLE);
    *begin = (uint64_t)data - at;
    if (hole > data && (uint64_t)hole < at + *end) {
        *end = (uint64_t)hole - at;
    }
    return true;
}
