/*
 * How far memory reaches, from numbers that a program or a client chose: the arithmetic behind the lengths of api/.
 *
 * Both sides include this file; it owns nothing. Nothing wraps around: what does not fit 64 bits is UINT64_MAX, which no
 * memory is long enough for.
 */
#ifndef TP_EXTENT_H
#define TP_EXTENT_H

#include <stdint.h>

static inline uint64_t tp_plus(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

static inline uint64_t tp_times(uint64_t a, uint64_t b) {
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

/* Rows of `width` bytes, `pitch` apart, from the first byte to the last. */
static inline uint64_t tp_area(uint64_t pitch, uint64_t width, uint64_t height) {
    return width && height ? tp_plus(tp_times(pitch, height - 1), width) : 0;
}

/* Slices of such rows, `rows` pitches apart, 0 for side by side; no memory is long enough for ones that lie in each other. */
static inline uint64_t tp_box(uint64_t pitch, uint64_t rows, uint64_t width, uint64_t height, uint64_t depth) {
    pitch = pitch ? pitch : width;
    rows = rows ? rows : height;
    uint64_t slice = tp_area(pitch, width, height);
    if ((pitch < width && (height > 1 || depth > 1)) || (rows < height && depth > 1)) {
        return UINT64_MAX;
    }
    return slice && depth ? tp_plus(tp_times(tp_times(pitch, rows), depth - 1), slice) : 0;
}

/* The value of an attribute of a pool (CUmemPool_attribute): the first three are int, the others 64 bits. */
static inline uint64_t tp_pool_value(int attribute) { return attribute <= 3 ? 4 : 8; }

#endif
