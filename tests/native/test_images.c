/*
 * The session's image cache by itself: what a client says that is wrong, and many sessions that write at once.
 *
 * The first word names the case, started by tests/test_image_cache.py with TF_IMAGE_CACHE_PATH set. One thread, and the one
 * that images.c starts; "crowd" has several processes. The bytes are made here.
 */
#include "simgpu_check.h"
#include "tpw_images.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <tp_quota.h>
#include <unistd.h>

#define SIZE (3u << 20)

static struct tpw_session session;
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

static void keep(unsigned seed, const unsigned char *as) { tpw_images_keep(&session, image(seed), SIZE, as); }

/* Bytes under another image's hash are not kept, neither under that nor under their own. */
static void case_lies(void) {
    keep(2, hash);
    tpw_images_close();
    CHECK(!tpw_images_find(&session, hash, SIZE));
    CHECK(!tpw_images_find(&session, other, SIZE));
}

static void case_sizes(void) {
    keep(1, hash);
    tpw_images_close();
    CHECK(!tpw_images_find(&session, hash, SIZE - 1));
    CHECK(!tpw_images_find(&session, hash, SIZE + 1));
    CHECK(!tpw_images_find(&session, hash, 0));
    CHECK(!tpw_images_find(&session, hash, UINT64_MAX));
    CHECK(!tpw_images_find(&session, other, SIZE));
    check(tpw_images_find(&session, hash, SIZE), 1);
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
                unsigned char *one = tpw_images_find(&session, hash, SIZE);
                unsigned char *two = tpw_images_find(&session, other, SIZE);
                if (one) {
                    check(one, 1);
                }
                if (two) {
                    check(two, 2);
                }
            }
            tpw_images_close();
            check(tpw_images_find(&session, hash, SIZE), 1);
            check(tpw_images_find(&session, other, SIZE), 2);
            exit(0);
        }
    }
    for (int i = 0; i < 8; i++) {
        int status;
        CHECK(wait(&status) > 0);
        CHECK(status == 0);
    }
}

int main(int count, char **words) {
    CHECK(count == 2);
    session.quota = mmap(NULL, TP_QUOTA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(session.quota != MAP_FAILED);
    unsigned char *one = image(1), *two = image(2);
    tp_sha256(one, SIZE, hash);
    tp_sha256(two, SIZE, other);
    free(one);
    free(two);
    const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"lies", case_lies}, {"sizes", case_sizes}, {"crowd", case_crowd}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(words[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    return 2;
}
