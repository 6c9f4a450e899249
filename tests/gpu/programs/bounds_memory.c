/* Memory that the driver pins, from each place that it could come from, and of what pages the kernel made it.
 *
 * One thread. The mappings are this process's alone; names in /dev/shm are removed as soon as they are open.
 */
#include "bounds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { PORTABLE_AND_MAPPED = 3, HUGE_PAGE = 2 * MIB };
static const size_t SPARE_BYTES = 64u * MIB; /* of /dev/shm, which must not become full under others */

static int open_posix(char *why, size_t why_size, size_t size) {
    char name[64];
    struct statvfs room;
    snprintf(name, sizeof name, "/tf-bounds-%ld", (long)getpid());
    const int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0) {
        snprintf(why, why_size, "shm_open: %s", strerror(errno));
        return -1;
    }
    shm_unlink(name);
    /* A page that is not there would end the program by a signal when it is touched. */
    if (fstatvfs(fd, &room) != 0 || (uint64_t)room.f_bavail * room.f_frsize < size + SPARE_BYTES) {
        snprintf(why, why_size, "/dev/shm has no room for %zu MiB", size / MIB);
        close(fd);
        return -1;
    }
    return fd;
}

static int open_anonymous(char *why, size_t why_size, unsigned flags) {
    const int fd = memfd_create("tf-bounds", flags);
    if (fd < 0)
        snprintf(why, why_size, "memfd_create: %s", strerror(errno));
    return fd;
}

/* hostalloc: the driver's. shm: POSIX shared memory of ordinary pages. shm_thp: the same with MADV_HUGEPAGE; that is
 * governed by the mount of /dev/shm (huge=). memfd_thp: governed by shmem_enabled. memfd_hugetlb: reserved pages. */
bool pinned_alloc(struct pinned *pinned, const char *part, const char *name, size_t size) {
    char why[200] = "";
    void *memory = MAP_FAILED;
    *pinned = (struct pinned){.name = name, .size = size, .fd = -1};
    if (strcmp(name, "hostalloc") == 0) {
        cu_must(cu.cuMemHostAlloc(&memory, size, PORTABLE_AND_MAPPED), "cuMemHostAlloc");
        cu_must(cu.cuMemHostGetDevicePointer_v2(&pinned->device, memory, 0), "cuMemHostGetDevicePointer");
        pinned->memory = memory;
        return true;
    }
    pinned->fd = strncmp(name, "shm", 3) == 0
                     ? open_posix(why, sizeof why, size)
                     : open_anonymous(why, sizeof why, strcmp(name, "memfd_hugetlb") == 0 ? MFD_HUGETLB : 0);
    pinned->size = size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (pinned->fd >= 0 && ftruncate(pinned->fd, (off_t)size) == 0)
        memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, pinned->fd, 0);
    if (memory == MAP_FAILED) {
        say_absent(part, name, "%s", why[0] != '\0' ? why : strerror(errno));
        if (pinned->fd >= 0)
            close(pinned->fd);
        return false;
    }
    /* What is asked for must be known before the first touch makes the pages. */
    const bool huge = strstr(name, "_thp") != NULL;
    if (strcmp(name, "memfd_hugetlb") != 0 && madvise(memory, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0)
        printf("{\"info\": \"%s: madvise for huge pages: %s\"}\n", name, strerror(errno));
    memset(memory, 0, size);
    const CUresult result = cu.cuMemHostRegister_v2(memory, size, PORTABLE_AND_MAPPED);
    if (result != 0) {
        say_absent(part, name, "cuMemHostRegister gave %d", result);
        munmap(memory, size);
        close(pinned->fd);
        return false;
    }
    cu_must(cu.cuMemHostGetDevicePointer_v2(&pinned->device, memory, 0), "cuMemHostGetDevicePointer");
    pinned->memory = memory;
    pinned->registered = true;
    return true;
}

void pinned_free(struct pinned *pinned) {
    if (pinned->memory == NULL)
        return;
    if (pinned->registered) {
        cu_must(cu.cuMemHostUnregister(pinned->memory), "cuMemHostUnregister");
        munmap(pinned->memory, pinned->size);
        close(pinned->fd);
    } else {
        cu_must(cu.cuMemFreeHost(pinned->memory), "cuMemFreeHost");
    }
    pinned->memory = NULL;
}

/* The lines of a /proc file that say something of huge pages, for the mapping that holds `address`. */
static void say_smaps(const struct pinned *pinned) {
    static const char *const wanted[] = {
        "Rss:",           "AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:",
        "KernelPageSize:"};
    const uintptr_t address = (uintptr_t)pinned->memory;
    char line[4400];
    bool inside = false;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    printf("{\"info\": \"%s: %zu MiB at %p, device address 0x%llx;", pinned->name, pinned->size / MIB,
           (void *)pinned->memory, pinned->device);
    while (smaps != NULL && fgets(line, sizeof line, smaps) != NULL) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = from <= address && address < to;
        for (size_t i = 0; inside && i < sizeof wanted / sizeof *wanted; i++)
            if (strncmp(line, wanted[i], strlen(wanted[i])) == 0)
                printf(" %s %lu kB", wanted[i], strtoul(line + strlen(wanted[i]), NULL, 10));
    }
    if (smaps != NULL)
        fclose(smaps);
}

void pinned_say(const struct pinned *pinned) {
    char line[4400];
    say_smaps(pinned);
    FILE *maps = fopen("/proc/self/numa_maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (strtoul(line, NULL, 16) != (uintptr_t)pinned->memory)
            continue;
        /* From "N0=65536" on: on which node the pages are. */
        char *node = strstr(line, " N");
        if (node != NULL)
            node[strcspn(node, "\n\"\\")] = '\0';
        printf(";%s", node != NULL ? node : " no page on a node yet");
    }
    if (maps != NULL)
        fclose(maps);
    printf("\"}\n");
    fflush(stdout);
}
