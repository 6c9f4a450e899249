/*
 * Writing an image into the cache's folder, and making room there.
 *
 * One thread of each session enters, of several processes at once. A file gets its name only when it is whole, by a rename; two
 * sessions that write the same image give the name to equal bytes. The name is the hash of the bytes that are written, computed
 * here: what a client says about its image can only prevent that it is kept. No lock: two sessions that make room at
 * once remove the same files, and a bound that both pass a little is kept by the next. Each session says on
 * the quota page how much it has added, so that the folder is looked through when that may pass the bound, and not for each image.
 */
#include "tpw_images.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <tp_system.h>
#include <unistd.h>

#define UNFINISHED "new-"
#define BLOCK 4096u
#define LOOK_AFTER 256u
#define SPARE_FROM (1024ull << 20) /* of folders that are smaller nothing more than needed is removed */
#define UNFINISHED_SECONDS 600     /* then the session that wrote it has died: none takes so long for 1 GiB */

struct file {
    char name[TPW_IMAGE_NAME];
    uint64_t size;
    struct timespec used;
};

static int by_use(const void *a, const void *b) {
    const struct timespec *one = &((const struct file *)a)->used, *two = &((const struct file *)b)->used;
    if (one->tv_sec != two->tv_sec) {
        return one->tv_sec < two->tv_sec ? -1 : 1;
    }
    return one->tv_nsec < two->tv_nsec ? -1 : one->tv_nsec > two->tv_nsec;
}

static bool is_name(const char *name) {
    return strlen(name) == TPW_IMAGE_NAME - 1 && strspn(name, "0123456789abcdef") == TPW_IMAGE_NAME - 1;
}

/* What a file takes of the disk: whole blocks. Of one that is not written yet, it is guessed. */
static uint64_t taken(uint64_t size, uint64_t blocks) {
    const uint64_t bytes = blocks * 512, whole = (size + BLOCK - 1) / BLOCK * BLOCK;
    return bytes > whole ? bytes : whole;
}

/* Removes the images that were not used for longest until `size` more bytes fit, and some more where that costs little, so that the
 * next ones fit, too. */
static bool make_room(const struct tpw_image_folder *folder, uint64_t size) {
    struct file *files = NULL;
    size_t count = 0, room = 0;
    uint64_t total = 0;
    bool made = false;
    static uint64_t found;        /* what the files took at the last look; 0 = there was none */
    static uint64_t added_before; /* by all sessions, at that look */
    static unsigned stored;       /* other workers may write there, too: so it is looked through now and then */
    const uint64_t added = folder->quota ? tp_quota_stored(folder->quota) : 0, known = found + (added - added_before);
    if (folder->quota && found && known >= found && known <= folder->bound && size <= folder->bound - known &&
        ++stored % LOOK_AFTER != 0) {
        return true;
    }
    const uint64_t spare = folder->bound >= SPARE_FROM ? folder->bound / 16 : 0;
    int fd = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    if (!list) {
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    for (const struct dirent *entry; (entry = readdir(list)) != NULL;) {
        struct stat about;
        if (fstatat(folder->fd, entry->d_name, &about, AT_SYMLINK_NOFOLLOW) || !S_ISREG(about.st_mode)) {
            continue;
        }
        if (strncmp(entry->d_name, UNFINISHED, sizeof UNFINISHED - 1) == 0) {
            if (about.st_mtime + UNFINISHED_SECONDS < time(NULL)) {
                unlinkat(folder->fd, entry->d_name, 0);
            }
            continue;
        }
        if (!is_name(entry->d_name)) {
            continue; /* not ours */
        }
        if (count == room) {
            room = 2 * room + 64;
            struct file *more = realloc(files, room * sizeof *files);
            if (!more) {
                goto done;
            }
            files = more;
        }
        files[count] =
            (struct file){.size = taken((uint64_t)about.st_size, (uint64_t)about.st_blocks), .used = about.st_atim};
        memcpy(files[count].name, entry->d_name, TPW_IMAGE_NAME);
        total += files[count++].size;
    }
    if (count) {
        qsort(files, count, sizeof *files, by_use);
    }
    const uint64_t most = size < folder->bound ? folder->bound - size : 0;
    const uint64_t wanted = total > most && most > spare ? most - spare : most;
    for (size_t i = 0; i < count && total > wanted; i++) {
        unlinkat(folder->fd, files[i].name, 0);
        total -= files[i].size;
    }
    made = total <= most;
    found = total ? total : 1;
    added_before = added;
done:
    free(files);
    closedir(list);
    return made;
}

bool tpw_image_store(const struct tpw_image_folder *folder, const unsigned char *bytes, size_t size,
                     const unsigned char hash[TP_SHA256_SIZE]) {
    unsigned char digest[TP_SHA256_SIZE];
    char name[TPW_IMAGE_NAME], unfinished[64];
    uint64_t number;
    struct stat about;
    tp_sha256(bytes, size, digest);
    if (memcmp(digest, hash, sizeof digest) != 0) {
        tp_log(TP_WARN, "an image is not kept: its bytes are not those that its client named");
        return true;
    }
    tpw_image_name(name, digest);
    if (fstatat(folder->fd, name, &about, AT_SYMLINK_NOFOLLOW) == 0 || size > folder->bound ||
        !make_room(folder, taken(size, 0))) {
        return true; /* another session was faster, or there can be no room */
    }
    if (!tp_random(&number, sizeof number)) {
        number = tp_now_ns();
    }
    snprintf(unfinished, sizeof unfinished, UNFINISHED "%ld-%016llx", (long)getpid(), (unsigned long long)number);
    int file = openat(folder->fd, unfinished, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool stored = file >= 0 && tp_write_all(file, bytes, size) && fstat(file, &about) == 0 &&
                  renameat(folder->fd, unfinished, folder->fd, name) == 0;
    if (!stored) {
        tp_log(TP_WARN, "images of this client are not kept from now on: writing %zu bytes to the cache failed: %s",
               size, strerror(errno));
        if (file >= 0) {
            unlinkat(folder->fd, unfinished, 0);
        }
    } else if (folder->quota) {
        tp_quota_store(folder->quota, taken(size, (uint64_t)about.st_blocks));
    }
    if (file >= 0) {
        close(file);
    }
    return stored;
}
