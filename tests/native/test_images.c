/*
 * The session's image cache by itself: what a client says that is wrong, and many sessions that write at once.
 *
 * The first word names the case, started by tests/test_image_cache.py with TF_IMAGE_CACHE_PATH set. One thread, and the one
 * that images.c starts; "crowd" has several processes. The bytes are made here.
 */
#include "simgpu_check.h"
#include "tpw_images.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <tp_quota.h>
#include <unistd.h>

#define SIZE (3u << 20)

static struct tpw_session session;
static struct tp_quota quota;
static unsigned char hash[TP_SHA256_SIZE], other[TP_SHA256_SIZE];

static unsigned char *image(unsigned seed) {
    unsigned char *bytes = malloc(SIZE);
    CHECK(bytes);
    for (unsigned i = 0; i < SIZE; i++) {
        bytes[i] = (unsigned char)(i * 7 + i / 4096 + seed);
    }
    return bytes;
}

static void check(const unsigned char *found, unsigned seed) {
    unsigned char *wanted = image(seed);
    CHECK(found && memcmp(found, wanted, SIZE) == 0);
    free(wanted);
    free((void *)(uintptr_t)found);
}

/* Of the session in the full jail, which this is not. */
bool tpw_control_send(const struct tpw_session *s, const struct tpw_packet *packet, int fd) {
    (void)s;
    (void)packet;
    (void)fd;
    return false;
}

static void keep(unsigned seed, const unsigned char *as) { tpw_images_keep(&session, image(seed), SIZE, as); }

/* Bytes under another image's hash are not kept, neither under that nor under their own. */
static void case_lies(void) {
    keep(2, hash);
    tpw_images_close();
    CHECK(!tpw_images_find(hash, SIZE));
    CHECK(!tpw_images_find(other, SIZE));
}

static void case_sizes(void) {
    keep(1, hash);
    tpw_images_close();
    CHECK(!tpw_images_find(hash, SIZE - 1));
    CHECK(!tpw_images_find(hash, SIZE + 1));
    CHECK(!tpw_images_find(hash, 0));
    CHECK(!tpw_images_find(hash, UINT64_MAX));
    CHECK(!tpw_images_find(other, SIZE));
    check(tpw_images_find(hash, SIZE), 1);
}

/* Eight processes write the same two images and read them all the while: what is found is whole. */
static void case_crowd(void) {
    for (int i = 0; i < 8; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            keep(1, hash);
            keep(2, other);
            for (int turn = 0; turn < 20; turn++) {
                unsigned char *one = tpw_images_find(hash, SIZE);
                unsigned char *two = tpw_images_find(other, SIZE);
                if (one) {
                    check(one, 1);
                }
                if (two) {
                    check(two, 2);
                }
            }
            tpw_images_close();
            check(tpw_images_find(hash, SIZE), 1);
            check(tpw_images_find(other, SIZE), 2);
            exit(0);
        }
    }
    for (int i = 0; i < 8; i++) {
        int status;
        CHECK(wait(&status) > 0);
        CHECK(status == 0);
    }
}

/* What the folder holds is looked up when that may pass the bound (8 MB here), and not for each image. */
static void case_unscanned(void) {
    static const char name[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    char path[4096];
    keep(1, hash);
    tpw_images_close();
    CHECK(tp_quota_stored(&quota) >= SIZE && tp_quota_stored(&quota) < 2 * SIZE);
    snprintf(path, sizeof path, "%s/%s", getenv("TF_IMAGE_CACHE_PATH"), name);
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    const struct timespec unused[2] = {{0}};
    CHECK(file >= 0 && ftruncate(file, 9 << 20) == 0 && futimens(file, unused) == 0);
    struct tpw_image_folder folder = {
        .fd = open(getenv("TF_IMAGE_CACHE_PATH"), O_RDONLY | O_DIRECTORY), .bound = 8 << 20, .quota = session.quota};
    unsigned char *bytes = image(2);
    CHECK(tpw_image_store(&folder, bytes, SIZE, other));
    CHECK(access(path, F_OK) == 0);
    tp_quota_store(&quota, 3 << 20); /* as another session would */
    unsigned char third[TP_SHA256_SIZE];
    free(bytes);
    bytes = image(3);
    tp_sha256(bytes, SIZE, third);
    CHECK(tpw_image_store(&folder, bytes, SIZE, third));
    CHECK(access(path, F_OK) != 0);
    free(bytes);
}

/* As files they would only be many. */
static void case_small(void) {
    unsigned char digest[TP_SHA256_SIZE];
    for (size_t size = 1; size < TPW_IMAGE_LEAST; size *= 2) {
        unsigned char *bytes = calloc(1, size);
        CHECK(bytes && tpw_images_open());
        tp_sha256(bytes, size, digest);
        tpw_images_keep(&session, bytes, size, digest);
    }
    tpw_images_close();
}

int main(int count, char **words) {
    CHECK(count == 2);
    _Atomic uint64_t *page = mmap(NULL, TP_QUOTA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    page[3] = 1; /* row */
    quota = (struct tp_quota){.page = page, .cell = (char *)page + TP_QUOTA_CELLS};
    session.quota = &quota;
    unsigned char *one = image(1), *two = image(2);
    tp_sha256(one, SIZE, hash);
    tp_sha256(two, SIZE, other);
    free(one);
    free(two);
    const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"lies", case_lies},
                 {"sizes", case_sizes},
                 {"crowd", case_crowd},
                 {"unscanned", case_unscanned},
                 {"small", case_small}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(words[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    return 2;
}
