/*
 * Which pages of the program's memory were written: asked of the kernel, which notes it without a fault that anybody sees.
 *
 * Linux from 6.7 on write-protects pages asynchronously (userfaultfd), and tells and protects anew what was written in one call
 * (PAGEMAP_SCAN). System calls that write into the memory work, and count. Whether all this is there is found out by trying, since
 * containers' usual seccomp profile forbids it; without it callers compare all of the memory. Memory that others have mapped, too,
 * is never tracked: what they write is not seen here. Nor is what a device writes by itself, or io_uring into buffers that were registered
 * before (docs/memory.md).
 * Any thread. Owns two descriptors, which a program may close: what cannot be asked counts as written.
 */
#include "tpc_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's, which older headers do not have. */
#ifndef SYS_userfaultfd
#ifdef __x86_64__
#define SYS_userfaultfd 323
#else
#define SYS_userfaultfd 282
#endif
#endif
struct range {
    uint64_t start, size;
};
struct handshake {
    uint64_t version, features, ioctls;
};
struct registration {
    struct range range;
    uint64_t mode, ioctls;
};
struct stretch {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define USER_MODE_ONLY 1
#define ASYNC_PROTECTION (1ull << 15)
#define PROTECTS_WHAT_IS_NOT_THERE (1ull << 13)
#define HANDSHAKE _IOWR(0xaa, 0x3f, struct handshake)
#define REGISTER _IOWR(0xaa, 0, struct registration)
#define UNREGISTER _IOR(0xaa, 1, struct range)
#define WRITES 2
#define SCAN _IOWR('f', 16, struct scan)
#define PROTECT_ANEW 3 /* what is told is protected again, and memory that is not tracked is an error */
#define WRITTEN 2

#define FIRST_DESCRIPTOR 700 /* programs choose low numbers, and close them */

static struct tp_lock lock;
static int protector = -1, pages = -1;
static struct stat identity; /* of the second: a program may close all descriptors, and have another file there */

/* glibc before 2.33 has no fstat to link with. */
static bool look(int descriptor, struct stat *out) { return syscall(SYS_fstat, descriptor, out) == 0; }

/* Out of the program's way, if there is room. */
static int far_from(int descriptor) {
    int moved = descriptor < 0 ? -1 : fcntl(descriptor, F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR);
    if (moved < 0) {
        return descriptor;
    }
    close(descriptor);
    return moved;
}

static uint64_t page_size(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static bool track(uint64_t start, uint64_t end) {
    struct registration what = {.range = {start, end - start}, .mode = WRITES};
    return ioctl(protector, REGISTER, &what) == 0;
}

/* Behind the last stretch that was told, or the negative error. */
static long ask(uint64_t *at, uint64_t end, struct stretch *found, size_t most) {
    struct scan what = {.size = sizeof what,
                        .flags = PROTECT_ANEW,
                        .start = *at,
                        .end = end,
                        .vec = (uint64_t)(uintptr_t)found,
                        .vec_len = most,
                        .category_mask = WRITTEN,
                        .return_mask = WRITTEN};
    struct stat now;
    if (!look(pages, &now) || now.st_dev != identity.st_dev || now.st_ino != identity.st_ino) {
        return -EBADF;
    }
    long count = ioctl(pages, SCAN, &what);
    if (count >= 0) {
        *at = what.walk_end;
    }
    return count < 0 ? -errno : count;
}

/* By doing it with a page. */
static bool try_one(void) {
    const uint64_t page = page_size();
    unsigned char *one = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct stretch found;
    const uint64_t start = (uint64_t)(uintptr_t)one;
    uint64_t at[3] = {start, start, start};
    if (one == MAP_FAILED) {
        return false;
    }
    *one = 1;
    bool able = track(start, start + page) && ask(&at[0], start + page, &found, 1) >= 0;
    able = able && ask(&at[1], start + page, &found, 1) == 0;
    *one = 2;
    able = able && ask(&at[2], start + page, &found, 1) == 1 && found.start == start && found.end == start + page;
    munmap(one, page);
    return able;
}

static bool open_both(void) {
    struct handshake hello = {.version = 0xaa, .features = ASYNC_PROTECTION | PROTECTS_WHAT_IS_NOT_THERE};
    protector = far_from((int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY));
    if (protector < 0 || ioctl(protector, HANDSHAKE, &hello) != 0) {
        return false;
    }
    pages = far_from(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    return pages >= 0 && look(pages, &identity) && try_one();
}

static bool is_there(void) {
    static bool tried, able;
    tp_lock_take(&lock);
    if (!tried) {
        tried = true;
        able = open_both();
        if (!able) {
            tp_log(TP_INFO,
                   "this kernel, or the container's seccomp profile, does not tell which pages of memory were written "
                   "(userfaultfd with asynchronous write protection, Linux 6.7): pinned memory that kernels use is "
                   "compared as a whole before each launch, which takes 0.1 ms for each MiB");
            for (int i = 0; i < 2; i++) {
                int *descriptor = i ? &pages : &protector;
                if (*descriptor >= 0) {
                    close(*descriptor);
                }
                *descriptor = -1;
            }
        }
    }
    bool there = able;
    tp_lock_drop(&lock);
    return there;
}

/* All of it is this process's alone. */
static bool is_private(uint64_t start, uint64_t end) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    uint64_t at = start;
    while (maps && at < end && fgets(line, sizeof line, maps)) {
        unsigned long long from, to;
        char rights[5];
        if (sscanf(line, "%llx-%llx %4s", &from, &to, rights) == 3 && from <= at && at < to) {
            if (rights[3] != 'p') {
                break;
            }
            at = to;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return at >= end;
}

/* The kernel forgets with the page that was told, and what else lies in a page may be tracked, too: so only whole ones count. */
struct tpc_written tpc_written_pages(uint64_t start, uint64_t size) {
    const uint64_t page = page_size(), from = (start + page - 1) & ~(page - 1), end = (start + size) & ~(page - 1);
    return (struct tpc_written){from, end > from ? end : from};
}

bool tpc_written_begin(uint64_t start, uint64_t size, bool ours) {
    const struct tpc_written at = tpc_written_pages(start, size);
    return at.start < at.end && is_there() && (ours || is_private(at.start, at.end)) && track(at.start, at.end);
}

void tpc_written_over(uint64_t start, uint64_t size) {
    const struct tpc_written at = tpc_written_pages(start, size);
    struct range range = {at.start, at.end - at.start};
    ioctl(protector, UNREGISTER, &range); /* of memory that has gone, or whose descriptor has, nothing is left to end */
}

size_t tpc_written_next(uint64_t *at, uint64_t end, struct tpc_written *out, size_t most) {
    enum { MOST = 64 };
    struct stretch found[MOST];
    const uint64_t page = page_size(), before = *at, last = (end + page - 1) & ~(page - 1);
    uint64_t from = before & ~(page - 1);
    const long count = ask(&from, last, found, most < MOST ? most : MOST);
    if (count < 0 || from <= before) {
        out[0] = (struct tpc_written){before, end};
        *at = end;
        return 1;
    }
    *at = from < end ? from : end;
    for (long i = 0; i < count; i++) {
        out[i] = (struct tpc_written){found[i].start > before ? found[i].start : before,
                                      found[i].end < end ? found[i].end : end};
    }
    return (size_t)count;
}
