/*
 * The image cache of a session: opening its folder, finding images, handing new ones to the thread that writes them.
 *
 * The executor enters; one thread of this file, started by the first image to keep, hashes and writes, so that the client does
 * not wait for either. A hash is a hostile client's: 32 bytes that become a name of hexadecimal digits. Files are written by
 * sessions of this user, perhaps of an older worker, and may have been cut or damaged since: they are read into memory of our
 * own and verified there, at each use: whoever takes a session over can change them. There is no second copy
 * in memory: what is read often lies in the kernel's page cache, which all sessions share, survives them, and gives way when
 * memory is short. They are read, not mapped, because a mapped file that somebody shortens ends the process that reads it.
 */
#include "tpw_images.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <tp_net.h>
#include <tp_system.h>
#include <unistd.h>

#define PIECE (256u << 10)       /* read and hashed while it is in the processor's cache */
#define QUEUED_MAX (1024u << 20) /* bytes that wait to be written; what passes that is not kept */
#define IMAGE_MAX QUEUED_MAX     /* so no file is larger */

struct waiting {
    struct waiting *next;
    unsigned char *bytes;
    size_t size;
    unsigned char hash[TP_SHA256_SIZE];
};

static struct tpw_image_folder folder = {.fd = -1};
static bool opened;
static struct tpw_session
    *told; /* whose supervisor writes the files; NULL: this process does; constant once there is a second thread */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static struct waiting *first, **last = &first; /* under lock, as the next three */
static size_t queued;
static bool running, closing, useless;
static pthread_t thread;

/* ---- the folder ---- */

void tpw_images_through_supervisor(struct tpw_session *s) { told = s; }

static bool tell(enum tpw_image_news what, const unsigned char *hash, uint64_t size, int fd) {
    struct tpw_packet packet = {.type = TPW_IMAGE, .argument = what, .value = size};
    memcpy(packet.body.greeting, hash, TP_SHA256_SIZE);
    return tpw_control_send(told, &packet, fd);
}

/* As a file in memory. */
static bool hand_over(const unsigned char *bytes, size_t size, const unsigned char *hash) {
    int file = (int)syscall(SYS_memfd_create, "tensor-fusion-image", MFD_CLOEXEC);
    bool given = file >= 0 && tp_write_all(file, bytes, size) && tell(TPW_IMAGE_KEEP, hash, size, file);
    if (file >= 0) {
        close(file);
    }
    return given;
}

static bool make_folders(char *path) {
    for (char *at = path + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = 0;
        int failed = mkdir(path, 0700) && errno != EEXIST;
        *at = '/';
        if (failed) {
            return false;
        }
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

static void open_folder(const char *from) {
    struct stat about;
    char *path = strdup(from);
    const char *size = getenv("TF_IMAGE_CACHE_SIZE");
    folder.bound = (size && *size ? strtoull(size, NULL, 10) : 4096) << 20;
    if (!path || !make_folders(path) ||
        (folder.fd = open(path, (told ? O_PATH : O_RDONLY) | O_DIRECTORY | O_CLOEXEC)) < 0 ||
        fstat(folder.fd, &about)) {
        tp_log(TP_WARN, "images are not kept: the folder %s cannot be used: %s", from, strerror(errno));
    } else if (about.st_uid != geteuid() || about.st_mode & 022) {
        tp_log(TP_WARN, "images are not kept: others than this user (%u) can write to the folder %s", geteuid(), from);
        close(folder.fd);
        folder.fd = -1;
    }
    free(path);
}

bool tpw_images_open(void) {
    if (!opened) {
        const char *path = getenv("TF_IMAGE_CACHE_PATH");
        opened = true;
        if (path && *path) {
            open_folder(path);
        }
    }
    return folder.fd >= 0;
}

/* ---- reading ---- */

void tpw_image_name(char name[TPW_IMAGE_NAME], const unsigned char hash[TP_SHA256_SIZE]) {
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < TP_SHA256_SIZE; i++) {
        name[2 * i] = digits[hash[i] >> 4];
        name[2 * i + 1] = digits[hash[i] & 15];
    }
    name[TPW_IMAGE_NAME - 1] = 0;
}

/* Reads all of a file; false when it is shorter or is not what its name says. */
static bool read_image(int file, unsigned char *bytes, size_t size, const unsigned char *hash) {
    unsigned char digest[TP_SHA256_SIZE];
    struct tp_sha256 sha;
    tp_sha256_begin(&sha);
    for (size_t at = 0; at < size;) {
        ssize_t got = read(file, bytes + at, size - at < PIECE ? size - at : PIECE);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            return false;
        }
        if (got > 0) {
            tp_sha256_add(&sha, bytes + at, (size_t)got);
        }
        at += got > 0 ? (size_t)got : 0;
    }
    tp_sha256_end(&sha, digest);
    return memcmp(digest, hash, sizeof digest) == 0;
}

unsigned char *tpw_images_find(const unsigned char hash[TP_SHA256_SIZE], uint64_t size) {
    static const struct timespec used[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
    char name[TPW_IMAGE_NAME];
    struct stat about;
    unsigned char *bytes = NULL;
    if (!tpw_images_open()) {
        return NULL;
    }
    tpw_image_name(name, hash);
    int file = openat(folder.fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) {
        return NULL;
    }
    if (fstat(file, &about) || !S_ISREG(about.st_mode) || about.st_uid != geteuid() || about.st_size < 0 ||
        (uint64_t)about.st_size > IMAGE_MAX) {
        goto done;
    }
    bytes = malloc((size_t)about.st_size + 1);
    if (!bytes) {
        goto done;
    }
    if (!read_image(file, bytes, (size_t)about.st_size, hash)) {
        static bool said;
        if (told) {
            (void)tell(TPW_IMAGE_DAMAGED, hash, 0, -1); /* which looks itself, removes it and says so */
        } else {
            if (!said) {
                said = true;
                tp_log(TP_WARN, "the image %s of the cache is damaged and is removed", name);
            }
            unlinkat(folder.fd, name, 0);
        }
        free(bytes);
        bytes = NULL;
        goto done;
    }
    /* The time of use by which the least recently used is found. */
    if (told) {
        (void)tell(TPW_IMAGE_USED, hash, 0, -1);
    } else {
        (void)futimens(file, used);
    }
    if (size != (uint64_t)about.st_size) {
        free(
            bytes); /* the client's word about the size is wrong: the driver would be given another image than it says */
        bytes = NULL;
    }
done:
    close(file);
    return bytes;
}

/* ---- keeping ---- */

static void *keeper(void *unused) {
    pthread_mutex_lock(&lock);
    while (first || !closing) {
        struct waiting *image = first;
        if (!image) {
            pthread_cond_wait(&news, &lock);
            continue;
        }
        first = image->next;
        last = first ? last : &first;
        bool drop = useless;
        pthread_mutex_unlock(&lock);
        bool stored = !drop && (told ? hand_over(image->bytes, image->size, image->hash)
                                     : tpw_image_store(&folder, image->bytes, image->size, image->hash));
        pthread_mutex_lock(&lock);
        useless = !stored;
        queued -= image->size;
        free(image->bytes);
        free(image);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

void tpw_images_keep(struct tpw_session *s, unsigned char *bytes, size_t size,
                     const unsigned char hash[TP_SHA256_SIZE]) {
    struct waiting *image = size >= TPW_IMAGE_LEAST && tpw_images_open() ? malloc(sizeof *image) : NULL;
    if (image) {
        *image = (struct waiting){.bytes = bytes, .size = size};
        memcpy(image->hash, hash, sizeof image->hash);
        pthread_mutex_lock(&lock);
        folder.quota = s->quota;
        if (!running && !useless) {
            running = tp_thread_start(&thread, "tf-images", 256u << 10, keeper, NULL) == TP_OK;
        }
        if (running && !useless && size <= QUEUED_MAX - queued) {
            *last = image;
            last = &image->next;
            queued += size;
            image = NULL;
            bytes = NULL;
            pthread_cond_signal(&news);
        }
        pthread_mutex_unlock(&lock);
    }
    free(image);
    free(bytes);
}

void tpw_images_close(void) {
    pthread_mutex_lock(&lock);
    bool join = running;
    closing = true;
    pthread_cond_signal(&news);
    pthread_mutex_unlock(&lock);
    if (join) {
        pthread_join(thread, NULL);
    }
}
