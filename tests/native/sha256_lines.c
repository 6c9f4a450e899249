/*
 * Hashes its standard input, a length and that many bytes at a time, with both implementations of SHA-256, added in pieces.
 *
 * One thread; started by tests/test_image_cache.py, which compares each line with hashlib. With the word "speed" it prints
 * the bytes per second of both.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_sha256.h>

static void print(bool instructions, const unsigned char *bytes, size_t size, size_t piece) {
    struct tp_sha256 sha;
    unsigned char digest[TP_SHA256_SIZE];
    tp_sha256_begin(&sha);
    sha.instructions = sha.instructions && instructions;
    for (size_t at = 0; at < size; at += piece) {
        tp_sha256_add(&sha, bytes + at, size - at < piece ? size - at : piece);
    }
    tp_sha256_end(&sha, digest);
    for (unsigned i = 0; i < sizeof digest; i++) {
        printf("%02x", digest[i]);
    }
    putchar(instructions ? ' ' : '\n');
}

static double speed(bool instructions) {
    enum { SIZE = 64 << 20 };
    unsigned char *bytes = malloc(SIZE), digest[TP_SHA256_SIZE];
    struct tp_sha256 sha;
    if (!bytes) {
        return 0;
    }
    memset(bytes, 7, SIZE);
    uint64_t begin = tp_now_ns();
    tp_sha256_begin(&sha);
    sha.instructions = sha.instructions && instructions;
    tp_sha256_add(&sha, bytes, SIZE);
    tp_sha256_end(&sha, digest);
    double seconds = (double)(tp_now_ns() - begin) / 1e9;
    free(bytes);
    return SIZE / seconds;
}

int main(int count, char **words) {
    struct tp_sha256 sha;
    tp_sha256_begin(&sha);
    if (count > 1 && strcmp(words[1], "speed") == 0) {
        printf("%d %.0f %.0f\n", sha.instructions, speed(true), speed(false));
        return 0;
    }
    printf("%d\n", sha.instructions);
    uint32_t head[2]; /* length, size of the pieces */
    while (fread(head, sizeof head, 1, stdin) == 1) {
        unsigned char *bytes = malloc(head[0] + 1u);
        if (!bytes || fread(bytes, 1, head[0], stdin) != head[0] || !head[1]) {
            return 1;
        }
        print(true, bytes, head[0], head[1]);
        print(false, bytes, head[0], head[1]);
        free(bytes);
    }
    return 0;
}
