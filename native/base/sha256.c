/*
 * SHA-256 of tp_sha256.h, twice: with the SHA instructions of x86-64 and in plain C.
 *
 * Owns nothing; any thread. It reads exactly the bytes it is given: images, in the client the program's, in the session a
 * hostile client's or a file's, whose contents cannot steer it. A program that changes its bytes meanwhile gets a hash of
 * neither state, which the worker then finds out.
 */
#include "tp_sha256.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, unsigned by) { return x >> by | x << (32 - by); }

static void blocks_plain(uint32_t state[8], const unsigned char *at, size_t count) {
    for (; count; count--, at += 64) {
        uint32_t w[64];
        for (unsigned i = 0; i < 16; i++) {
            memcpy(&w[i], at + 4 * i, 4);
            w[i] = __builtin_bswap32(w[i]);
        }
        for (unsigned i = 16; i < 64; i++) {
            uint32_t low = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
            uint32_t high = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + low + w[i - 7] + high;
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (unsigned i = 0; i < 64; i++) {
            uint32_t one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
            uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g;
            g = f;
            f = e;
            e = d + one;
            d = c;
            c = b;
            b = a;
            a = one + two;
        }
        const uint32_t sums[8] = {a, b, c, d, e, f, g, h};
        for (unsigned i = 0; i < 8; i++) {
            state[i] += sums[i];
        }
    }
}

#if defined(__x86_64__)
static bool have_instructions(void) {
    unsigned a, b, c, d;
    /* Leaf 1: SSSE3 and SSE4.1 for the shuffles; leaf 7: SHA. */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 9) || !(c & 1u << 19)) {
        return false;
    }
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1u << 29;
}

/* The instructions want the state as ABEF and CDGH, do two rounds each, and four words of the schedule at a time. */
__attribute__((target("sha,ssse3,sse4.1"))) static void blocks_instructions(uint32_t state[8], const unsigned char *at,
                                                                            size_t count) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)state), 0xb1);
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xf0);
    for (; count; count--, at += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (unsigned i = 0; i < 4; i++) {
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(at + 16 * i)), swap);
        }
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; i++) {
            __m128i sum =
                _mm_add_epi32(w[i % 4], _mm_loadu_si128((const __m128i *)(const void *)(constants + (size_t)4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            if (i < 12) {
                __m128i next = _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]),
                                             _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4));
                w[i % 4] = _mm_sha256msg2_epu32(next, w[(i + 3) % 4]);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    low = _mm_shuffle_epi32(abef, 0x1b);
    high = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)(void *)state, _mm_blend_epi16(low, high, 0xf0));
    _mm_storeu_si128((__m128i *)(void *)(state + 4), _mm_alignr_epi8(high, low, 8));
}
#else
static bool have_instructions(void) { return false; }
static void blocks_instructions(uint32_t state[8], const unsigned char *at, size_t count) {
    blocks_plain(state, at, count);
}
#endif

static void blocks(struct tp_sha256 *sha, const unsigned char *at, size_t count) {
    if (sha->instructions) {
        blocks_instructions(sha->state, at, count);
    } else {
        blocks_plain(sha->state, at, count);
    }
}

void tp_sha256_begin(struct tp_sha256 *sha) {
    *sha = (struct tp_sha256){
        .state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
        .instructions = have_instructions()};
}

void tp_sha256_add(struct tp_sha256 *sha, const void *bytes, size_t size) {
    const unsigned char *at = bytes;
    size_t held = sha->size % sizeof sha->rest;
    sha->size += size;
    if (held) {
        size_t part = sizeof sha->rest - held < size ? sizeof sha->rest - held : size;
        memcpy(sha->rest + held, at, part);
        at += part;
        size -= part;
        if (held + part < sizeof sha->rest) {
            return;
        }
        blocks(sha, sha->rest, 1);
    }
    blocks(sha, at, size / sizeof sha->rest);
    if (size % sizeof sha->rest) {
        memcpy(sha->rest, at + size / sizeof sha->rest * sizeof sha->rest, size % sizeof sha->rest);
    }
}

void tp_sha256_end(struct tp_sha256 *sha, unsigned char digest[TP_SHA256_SIZE]) {
    static const unsigned char padding[64] = {0x80};
    uint64_t bits = __builtin_bswap64(sha->size * 8);
    size_t held = sha->size % 64;
    tp_sha256_add(sha, padding, held < 56 ? 56 - held : 120 - held);
    tp_sha256_add(sha, &bits, sizeof bits);
    for (unsigned i = 0; i < 8; i++) {
        uint32_t word = __builtin_bswap32(sha->state[i]);
        memcpy(digest + (size_t)4 * i, &word, sizeof word);
    }
}

void tp_sha256(const void *bytes, size_t size, unsigned char digest[TP_SHA256_SIZE]) {
    struct tp_sha256 sha;
    tp_sha256_begin(&sha);
    tp_sha256_add(&sha, bytes, size);
    tp_sha256_end(&sha, digest);
}
