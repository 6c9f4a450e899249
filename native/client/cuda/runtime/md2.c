/*
 * MD2 (RFC 1319) and HMAC (RFC 2104) over it, for the integrity check that the CUDA runtime demands of its driver.
 *
 * MD2 protects nothing here: both sides know the key, see export_table_integrity.c. Checked against the test suite of the
 * RFC, which also proves the permutation below.
 * Any thread; reads only its arguments.
 */
#include "tpc_runtime.h"

#define BLOCK 16u

/* RFC 1319, appendix: a permutation of 0…255 from the digits of pi. */
static const unsigned char pi_table[256] = {
    41,  46,  67,  201, 162, 216, 124, 1,   61,  54,  84,  161, 236, 240, 6,   19,  98,  167, 5,   243, 192, 199,
    115, 140, 152, 147, 43,  217, 188, 76,  130, 202, 30,  155, 87,  60,  253, 212, 224, 22,  103, 66,  111, 24,
    138, 23,  229, 18,  190, 78,  196, 214, 218, 158, 222, 73,  160, 251, 245, 142, 187, 47,  238, 122, 169, 104,
    121, 145, 21,  178, 7,   63,  148, 194, 16,  137, 11,  34,  95,  33,  128, 127, 93,  154, 90,  144, 50,  39,
    53,  62,  204, 231, 191, 247, 151, 3,   255, 25,  48,  179, 72,  165, 181, 209, 215, 94,  146, 42,  172, 86,
    170, 198, 79,  184, 56,  210, 150, 164, 125, 182, 118, 252, 107, 226, 156, 116, 4,   241, 69,  157, 112, 89,
    100, 113, 135, 32,  134, 91,  207, 101, 230, 45,  168, 2,   27,  96,  37,  173, 174, 176, 185, 246, 28,  70,
    97,  105, 52,  64,  126, 15,  85,  71,  163, 35,  221, 81,  175, 58,  195, 92,  249, 206, 186, 197, 234, 38,
    44,  83,  13,  110, 133, 40,  132, 9,   211, 223, 205, 244, 65,  129, 77,  82,  106, 220, 55,  200, 108, 193,
    171, 250, 36,  225, 123, 8,   12,  189, 177, 74,  120, 136, 149, 139, 227, 99,  232, 109, 233, 203, 213, 254,
    59,  0,   29,  57,  242, 239, 183, 14,  102, 88,  208, 228, 166, 119, 114, 248, 235, 117, 75,  10,  49,  68,
    80,  180, 143, 237, 31,  26,  219, 153, 141, 51,  159, 17,  131, 20,
};

struct md2 {
    unsigned char state[3 * BLOCK];
    unsigned char checksum[BLOCK];
    unsigned char block[BLOCK];
    size_t used;
};

static void absorb(struct md2 *m, const unsigned char *block) {
    unsigned char last = m->checksum[BLOCK - 1];
    for (size_t i = 0; i < BLOCK; i++) {
        m->state[BLOCK + i] = block[i];
        m->state[2 * BLOCK + i] = (unsigned char)(block[i] ^ m->state[i]);
        last = m->checksum[i] ^= pi_table[block[i] ^ last];
    }
    unsigned t = 0;
    for (unsigned round = 0; round < 18; round++) {
        for (size_t i = 0; i < sizeof m->state; i++) {
            t = m->state[i] ^= pi_table[t];
        }
        t = (t + round) & 0xff;
    }
}

static void update(struct md2 *m, const void *data, size_t size) {
    const unsigned char *at = data;
    for (size_t i = 0; i < size; i++) {
        m->block[m->used++] = at[i];
        if (m->used == BLOCK) {
            absorb(m, m->block);
            m->used = 0;
        }
    }
}

static void finish(struct md2 *m, unsigned char digest[16]) {
    unsigned char padding = (unsigned char)(BLOCK - m->used);
    for (unsigned i = 0; i < padding; i++) {
        m->block[m->used + i] = padding;
    }
    absorb(m, m->block);
    unsigned char checksum[BLOCK];
    memcpy(checksum, m->checksum, sizeof checksum);
    absorb(m, checksum);
    memcpy(digest, m->state, 16);
}

void tpc_md2(const void *message, size_t size, unsigned char digest[16]) {
    struct md2 m = {.used = 0};
    update(&m, message, size);
    finish(&m, digest);
}

void tpc_hmac_md2(const void *key, size_t key_size, const void *message, size_t size, unsigned char digest[16]) {
    unsigned char pad[BLOCK] = {0}, inner[16];
    if (key_size > BLOCK) {
        tpc_md2(key, key_size, pad);
    } else {
        memcpy(pad, key, key_size);
    }
    unsigned char bytes[BLOCK];
    struct md2 m = {.used = 0};
    for (size_t i = 0; i < BLOCK; i++) {
        bytes[i] = pad[i] ^ 0x36;
    }
    update(&m, bytes, BLOCK);
    update(&m, message, size);
    finish(&m, inner);
    m = (struct md2){.used = 0};
    for (size_t i = 0; i < BLOCK; i++) {
        bytes[i] = pad[i] ^ 0x5c;
    }
    update(&m, bytes, BLOCK);
    update(&m, inner, sizeof inner);
    finish(&m, digest);
}
