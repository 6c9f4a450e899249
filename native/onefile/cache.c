/*
 * The folder that the one file is unpacked into, and lives in as long as it runs.
 *
 *     CACHE/lock           held while a start looks, unpacks and tidies up
 *     CACHE/HASH/          the worker's folder; its name is the hash of what is in it
 *     CACHE/HASH/.in-use   locked, shared, by every worker that runs there
 *
 * Nothing in it is believed: each start compares every file with its own bytes, which takes a few hundredths of a second, and unpacks
 * anew what differs. Folders of other versions go when nobody runs there. The cache, and every folder above it, must be one that no
 * other user can change, or somebody could put a program under the name between the look and the start.
 */
#include "of_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define NEW "new"
#define DAMAGED "damaged."
#define IN_USE ".in-use"
enum { PATIENCE_MS = 60000, SAID_AFTER_MS = 1000, STEP_MS = 20, FIRST_DESCRIPTOR = 64 };

/* No user but this one and root may change what lies at the path. */
static bool is_ours_alone(const char *path) {
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (bool last = true;; last = false) {
        struct stat status;
        if (lstat(*part ? part : "/", &status)) {
            say("%s cannot be looked at: %s.", *part ? part : "/", strerror(errno));
            return false;
        }
        if (status.st_uid != geteuid() && (last || status.st_uid)) {
            say("%s belongs to another user (%u), so %s is not used.", *part ? part : "/", status.st_uid, path);
            return false;
        }
        /* In a sticky folder, as /tmp is, only its owner can rename a file. */
        if ((status.st_mode & (S_IWGRP | S_IWOTH)) && (last || !(status.st_mode & S_ISVTX))) {
            say("%s can be written by other users, so %s is not used; chmod go-w %s.", *part ? part : "/", path,
                *part ? part : "/");
            return false;
        }
        if (!*part)
            return true;
        *strrchr(part, '/') = 0;
    }
}

int cache_open(const char *base, const char *below, char path[PATH_MAX]) {
    int folder = open(base, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    snprintf(path, PATH_MAX, "%s/%s", base, below);
    for (const char *part = below; folder >= 0 && part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(part, "/"), part);
        if (mkdirat(folder, name, 0700) && errno != EEXIST) {
            say("%s cannot be made: %s.", path, strerror(errno));
            close(folder);
            return -1;
        }
        /* systemd's cache of a service is a link; a name that anybody could have made in /tmp may not be one. */
        bool link = strchr(part, '/') && strncmp(name, "tensor-fusion-", 14) != 0;
        int next = openat(folder, name, O_DIRECTORY | O_RDONLY | O_CLOEXEC | (link ? 0 : O_NOFOLLOW));
        int error = errno;
        close(folder);
        folder = next;
        errno = error;
    }
    if (folder < 0) {
        say("%s cannot be opened: %s.", path, strerror(errno));
        return -1;
    }
    char descriptor[32];
    snprintf(descriptor, sizeof descriptor, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(descriptor, path, PATH_MAX - 1);
    struct statvfs system;
    if (length <= 0 || fstatvfs(folder, &system)) {
        say("%s cannot be looked at: %s.", path, strerror(errno));
    } else {
        path[length] = 0;
        if (system.f_flag & ST_NOEXEC)
            say("%s lies where programs may not be run (mounted with noexec).", path);
        else if (is_ours_alone(path))
            return folder;
    }
    close(folder);
    return -1;
}

static bool remove_tree(int parent, const char *name) {
    if (!unlinkat(parent, name, 0) || errno == ENOENT)
        return true;
    int folder = openat(parent, name, O_DIRECTORY | O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = folder < 0 ? NULL : fdopendir(folder);
    if (!list)
        return false;
    bool removed = true;
    for (struct dirent *item = readdir(list); item; item = readdir(list))
        if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0)
            removed = remove_tree(folder, item->d_name) && removed;
    closedir(list);
    return removed && !unlinkat(parent, name, AT_REMOVEDIR);
}

static bool same_file(int folder, const struct entry *entry) {
    int file = openat(folder, entry->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    bool same = file >= 0 && !fstat(file, &status) && S_ISREG(status.st_mode) && status.st_uid == geteuid() &&
                (size_t)status.st_size == entry->size && !(status.st_mode & (S_IWGRP | S_IWOTH)) &&
                !entry->is_program == !(status.st_mode & S_IXUSR);
    for (size_t at = 0; same && at < entry->size;) {
        static char buffer[1 << 18];
        ssize_t got = read(file, buffer, sizeof buffer);
        same = got > 0 && (size_t)got <= entry->size - at && !memcmp(buffer, entry->bytes + at, (size_t)got);
        at += same ? (size_t)got : 0;
    }
    if (file >= 0)
        close(file);
    return same;
}

static bool same_folder(int cache, const struct payload *payload) {
    int folder = openat(cache, payload->name, O_DIRECTORY | O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0)
        return false;
    struct stat status;
    bool same = !fstat(folder, &status) && status.st_uid == geteuid() && !(status.st_mode & (S_IWGRP | S_IWOTH));
    struct payload rest = *payload;
    for (struct entry entry; same && payload_next(&rest, &entry);)
        same = same_file(folder, &entry);
    close(folder);
    return same;
}

static bool write_file(int folder, const struct entry *entry) {
    char path[sizeof entry->path];
    memcpy(path, entry->path, sizeof path);
    for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdirat(folder, path, 0700) && errno != EEXIST)
            return false;
        *slash = '/';
    }
    int file = openat(folder, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return false;
    bool written = !fchmod(file, entry->is_program ? 0700 : 0600);
    for (size_t at = 0; written && at < entry->size;) {
        ssize_t put = write(file, entry->bytes + at, entry->size - at);
        written = put > 0;
        at += written ? (size_t)put : 0;
    }
    int error = errno;
    written = !close(file) && written;
    errno = written ? 0 : error;
    return written;
}

/* What lies under the payload's name, which is nothing or is damaged, makes way for the payload. */
static bool unpack(int cache, const char *path, const struct payload *payload) {
    struct payload rest = *payload;
    int folder = -1;
    bool made = remove_tree(cache, NEW) && !mkdirat(cache, NEW, 0700) &&
                (folder = openat(cache, NEW, O_DIRECTORY | O_RDONLY | O_NOFOLLOW | O_CLOEXEC)) >= 0;
    for (struct entry entry; made && payload_next(&rest, &entry);)
        made = write_file(folder, &entry);
    if (made && renameat(cache, NEW, cache, payload->name)) {
        char aside[sizeof DAMAGED + 16];
        snprintf(aside, sizeof aside, DAMAGED "%d", getpid());
        made = !renameat(cache, payload->name, cache, aside) && !renameat(cache, NEW, cache, payload->name);
        if (made)
            say("%s/%s was damaged, and was unpacked anew.", path, payload->name);
    }
    int error = errno;
    if (folder >= 0)
        close(folder);
    if (!made) {
        remove_tree(cache, NEW);
        say("it cannot be unpacked into %s: %s (%zu MB are needed).", path, strerror(error),
            ((size_t)(payload->end - payload->at) >> 20) + 1);
    }
    return made;
}

/* Whether the entry is of a start before this one, and not of somebody who keeps other things here. */
static bool is_of_a_start(const char *name) {
    return !strcmp(name, NEW) || !strncmp(name, DAMAGED, strlen(DAMAGED)) ||
           (strlen(name) == NAME_LENGTH && strspn(name, "0123456789abcdef") == NAME_LENGTH);
}

/* Folders of other versions go, but those in which a worker runs. */
static void tidy(int cache, const char *path, const char *keep) {
    int again = dup(cache);
    DIR *list = again < 0 ? NULL : fdopendir(again);
    if (!list)
        return;
    rewinddir(list);
    for (struct dirent *item = readdir(list); item; item = readdir(list)) {
        if (!is_of_a_start(item->d_name) || !strcmp(item->d_name, keep))
            continue;
        char used[NAME_MAX + sizeof IN_USE + 1];
        snprintf(used, sizeof used, "%s/" IN_USE, item->d_name);
        int lock = openat(cache, used, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
        bool runs = lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
        if (!runs && !remove_tree(cache, item->d_name))
            say("%s/%s, of another version, cannot be removed: %s.", path, item->d_name, strerror(errno));
        if (lock >= 0)
            close(lock);
    }
    closedir(list);
}

static int lock_cache(int cache, const char *path) {
    int lock = openat(cache, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock < 0) {
        say("%s/lock cannot be opened: %s.", path, strerror(errno));
        return -1;
    }
    for (int waited = 0; flock(lock, LOCK_EX | LOCK_NB); waited += STEP_MS) {
        if (errno != EWOULDBLOCK || waited >= PATIENCE_MS) {
            say("%s/lock cannot be locked: %s.", path,
                errno == EWOULDBLOCK ? "another start holds it" : strerror(errno));
            close(lock);
            return -1;
        }
        if (waited == SAID_AFTER_MS)
            say("waiting for another start, which unpacks into %s, for up to %d s.", path, PATIENCE_MS / 1000);
        nanosleep(&(struct timespec){.tv_nsec = STEP_MS * 1000000L}, NULL);
    }
    return lock;
}

/* Lock the folder for this process; the descriptor outlives the start of the worker, and of its sessions does no harm. */
static bool hold(int cache, const char *path, const char *name) {
    char used[NAME_LENGTH + sizeof IN_USE + 1];
    snprintf(used, sizeof used, "%s/" IN_USE, name);
    int file = openat(cache, used, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    int lasting = file < 0 ? -1 : fcntl(file, F_DUPFD, FIRST_DESCRIPTOR);
    bool held = lasting >= 0 && !flock(lasting, LOCK_SH | LOCK_NB);
    if (!held)
        say("%s/%s cannot be locked: %s.", path, used, strerror(errno));
    if (file >= 0)
        close(file);
    return held;
}

bool cache_fill(int cache, const char *path, const struct payload *payload) {
    int lock = lock_cache(cache, path);
    if (lock < 0)
        return false;
    bool ready = (same_folder(cache, payload) || unpack(cache, path, payload)) && hold(cache, path, payload->name);
    if (ready)
        tidy(cache, path, payload->name);
    close(lock);
    return ready;
}
