/*
 * The private table through which NVRTC keeps what it has compiled: a cache on the client's disk, as the driver has one.
 *
 * What each entry does was found by letting NVRTC 13 call a table whose entries wrote down their arguments. Without the table NVRTC
 * compiles everything anew in each process; cuDNN's attention alone is a kernel of 0.4 s for each length.
 *
 * One file for each result, named by the SHA-256 of everything that NVRTC says of it and beginning with the SHA-256 of what
 * follows, so that a file that was cut, changed or written by two at once is no result. Any thread; nothing is kept in
 * memory. The arguments are the program's own memory; the files are the user's. Failing to keep something is never an
 * error to the program: it compiles.
 */
#include "tpc_runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <tp_sha256.h>
#include <tp_system.h>
#include <unistd.h>

#define RESULT_MAX (64u << 20)
#define FOLDER_BYTES_DEFAULT (1ull << 30) /* as CUDA_CACHE_MAXSIZE says when it is not set */
#define STORES_BETWEEN_LOOKS 64u
#define PATH_SIZE 1024u
#define NAME_SIZE (2 * TP_SHA256_SIZE)
#define UNFINISHED ".new-"
#define UNFINISHED_S 600

struct key {
    char path[PATH_SIZE];
};

/* ---- the folder ---- */

static bool make_folders(char *path) {
    for (char *at = path + 1; *at; at++) {
        if (*at == '/') {
            *at = 0;
            bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
            *at = '/';
            if (!made) {
                return false;
            }
        }
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

/* CUDA's own variables say where compiled code is kept and whether; without them it is the user's cache folder. */
static bool folder(char path[PATH_SIZE]) {
    const char *off = getenv("CUDA_CACHE_DISABLE"), *chosen = getenv("CUDA_CACHE_PATH");
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (off && *off && strcmp(off, "0") != 0) {
        return false;
    }
    int size = chosen && *chosen == '/' ? snprintf(path, PATH_SIZE, "%s/tensor-fusion", chosen)
               : cache && *cache == '/' ? snprintf(path, PATH_SIZE, "%s/tensor-fusion/nvrtc", cache)
               : home && *home == '/'   ? snprintf(path, PATH_SIZE, "%s/.cache/tensor-fusion/nvrtc", home)
                                        : -1;
    return size > 0 && (size_t)size < PATH_SIZE - NAME_SIZE - 32;
}

static uint64_t folder_bytes_max(void) {
    const char *text = getenv("CUDA_CACHE_MAXSIZE");
    char *end = NULL;
    unsigned long long bytes = text && *text ? strtoull(text, &end, 10) : 0;
    return bytes && !*end ? bytes : FOLDER_BYTES_DEFAULT;
}

struct entry {
    struct timespec used;
    uint64_t bytes;
    char name[NAME_SIZE + 1];
};

static int older(const void *left, const void *right) {
    const struct timespec *a = &((const struct entry *)left)->used, *b = &((const struct entry *)right)->used;
    return a->tv_sec != b->tv_sec ? (a->tv_sec > b->tv_sec) - (a->tv_sec < b->tv_sec)
                                  : (a->tv_nsec > b->tv_nsec) - (a->tv_nsec < b->tv_nsec);
}

/* Removes what was used least recently until three quarters of the bound are left. */
static void prune(const char *path) {
    DIR *open_folder = opendir(path);
    struct entry *entries = NULL;
    size_t count = 0, room = 0;
    uint64_t total = 0, most = folder_bytes_max();
    struct dirent *found;
    while (open_folder && (found = readdir(open_folder)) != NULL) {
        struct stat about;
        bool unfinished = strncmp(found->d_name, UNFINISHED, sizeof UNFINISHED - 1) == 0;
        if ((!unfinished && strlen(found->d_name) != NAME_SIZE) ||
            tp_about_at(dirfd(open_folder), found->d_name, &about) != 0 || !S_ISREG(about.st_mode)) {
            continue;
        }
        if (unfinished) { /* of a process that was killed, unless it is being written now */
            if (about.st_mtime + UNFINISHED_S < time(NULL)) {
                unlinkat(dirfd(open_folder), found->d_name, 0);
            }
            continue;
        }
        if (count == room) {
            room = room ? 2 * room : 256;
            struct entry *grown = realloc(entries, room * sizeof *entries);
            if (!grown) {
                break;
            }
            entries = grown;
        }
        entries[count] = (struct entry){.used = about.st_mtim, .bytes = (uint64_t)about.st_size};
        memcpy(entries[count].name, found->d_name, NAME_SIZE + 1);
        total += entries[count++].bytes;
    }
    if (total > most) {
        qsort(entries, count, sizeof *entries, older);
        for (size_t i = 0; i < count && total > most / 4 * 3; i++) {
            unlinkat(dirfd(open_folder), entries[i].name, 0);
            total -= entries[i].bytes;
        }
    }
    free(entries);
    if (open_folder) {
        closedir(open_folder);
    }
}

/* ---- the entries ---- */

static void add_text(struct tp_sha256 *sha, const char *text) {
    tp_sha256_add(sha, text ? text : "", text ? strlen(text) + 1 : 1);
}

/* `kind` 2 is PTX, 1 a cubin; both are named by the same bitcode. `version` and `build` are NVRTC's own. */
static CUresult cache_key(struct key **out, int kind, const void *data, size_t size, const char *options,
                          const char *host, const char *build, uint32_t version) {
    if (!out || (!data && size)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct key *key = malloc(sizeof *key);
    if (!key || !folder(key->path)) {
        free(key);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    struct tp_sha256 sha;
    unsigned char digest[TP_SHA256_SIZE];
    uint64_t length = size;
    tp_sha256_begin(&sha);
    tp_sha256_add(&sha, &kind, sizeof kind);
    tp_sha256_add(&sha, &version, sizeof version);
    add_text(&sha, options);
    add_text(&sha, host);
    add_text(&sha, build);
    tp_sha256_add(&sha, &length, sizeof length);
    tp_sha256_add(&sha, data, size);
    tp_sha256_end(&sha, digest);
    char *at = key->path + strlen(key->path);
    *at++ = '/';
    for (size_t i = 0; i < sizeof digest; i++) {
        at += snprintf(at, 3, "%02x", digest[i]);
    }
    *out = key;
    return CUDA_SUCCESS;
}

static CUresult cache_key_end(struct key *key) {
    free(key);
    return CUDA_SUCCESS;
}

static bool read_all(int fd, unsigned char *to, size_t size) {
    while (size > 0) {
        ssize_t n = read(fd, to, size);
        if (n <= 0 && !(n < 0 && errno == EINTR)) {
            return false;
        }
        to += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

static CUresult cache_find(const struct key *key, uint64_t unused, void **data, uint32_t *size) {
    unsigned char said[TP_SHA256_SIZE], digest[TP_SHA256_SIZE], *bytes = NULL;
    struct stat about;
    (void)unused;
    if (!key || !data || !size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = CUDA_ERROR_NOT_FOUND;
    int fd = open(key->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || tp_about(fd, &about) != 0) {
        goto done;
    }
    uint64_t length = about.st_size > (off_t)sizeof said ? (uint64_t)about.st_size - sizeof said : 0;
    if (S_ISREG(about.st_mode) && length && length <= RESULT_MAX) {
        bytes = malloc(length);
    }
    bool whole = bytes && read_all(fd, said, sizeof said) && read_all(fd, bytes, length);
    if (whole) {
        tp_sha256(bytes, length, digest);
        whole = memcmp(digest, said, sizeof digest) == 0;
    }
    if (whole) {
        futimens(fd, NULL); /* used now */
        *data = bytes;
        *size = (uint32_t)length;
        bytes = NULL;
        result = CUDA_SUCCESS;
    } else {
        tp_log(TP_INFO, "%s is not what was kept there and is removed", key->path);
        unlink(key->path);
    }
done:
    free(bytes);
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

static CUresult cache_data_end(void *data) {
    free(data);
    return CUDA_SUCCESS;
}

static CUresult cache_keep(const struct key *key, uint64_t unused, const void *data, uint32_t size) {
    static _Atomic uint32_t stores;
    static _Atomic bool said;
    char path[PATH_SIZE], temporary[PATH_SIZE + 32];
    unsigned char digest[TP_SHA256_SIZE];
    (void)unused;
    if (!key || !data || !size || size > RESULT_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    snprintf(path, sizeof path, "%.*s", (int)(strrchr(key->path, '/') - key->path), key->path);
    snprintf(temporary, sizeof temporary, "%s/" UNFINISHED "XXXXXX", path);
    int fd = make_folders(path) ? mkostemp(temporary, O_CLOEXEC) : -1;
    bool kept = false;
    if (fd >= 0) {
        tp_sha256(data, size, digest);
        kept = tp_write_all(fd, digest, sizeof digest) && tp_write_all(fd, data, size);
        kept = close(fd) == 0 && kept && rename(temporary, key->path) == 0;
        if (!kept) {
            unlink(temporary);
        }
    }
    if (!kept) {
        if (!atomic_exchange(&said, true)) {
            tp_log(TP_WARN, "What NVRTC compiles is not kept in %s: %s", path, strerror(errno));
        }
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    if (atomic_fetch_add(&stores, 1) % STORES_BETWEEN_LOOKS == 0) {
        prune(path);
    }
    return CUDA_SUCCESS;
}

/* Nobody was seen to call it. */
static CUresult unknown_entry(void) {
    tp_log(TP_WARN, "Entry 5 of the private table da9151d3 was called; it is not known, CUDA_ERROR_NOT_SUPPORTED is "
                    "returned");
    return CUDA_ERROR_NOT_SUPPORTED;
}

const void *const tpc_compile_cache_table[7] = {
    (const void *)0x38,       (const void *)cache_key,     (const void *)cache_key_end,  (const void *)cache_find,
    (const void *)cache_keep, (const void *)unknown_entry, (const void *)cache_data_end,
};
