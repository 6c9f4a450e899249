/*
 * A set of disjoint address intervals: what holds this address, in O(log n).
 *
 * A treap of nodes that the caller embeds as first member of its own structure; it owns no memory and takes no locks.
 * The addresses and their order may be chosen by a hostile peer, which is why the balance comes from random priorities
 * and not from the keys. Intervals never wrap around the end of the address space and are never empty.
 */
#ifndef TP_INTERVALS_H
#define TP_INTERVALS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tp_interval {
    uint64_t start, size;
    struct tp_interval *left, *right;
    uint32_t priority;
};

struct tp_intervals {
    struct tp_interval *root;
    size_t count;
    uint32_t seed;
};

/* The interval that holds `address`, NULL if none does. */
static inline struct tp_interval *tp_interval_at(const struct tp_intervals *set, uint64_t address) {
    struct tp_interval *at = set->root;
    while (at) {
        if (address < at->start) {
            at = at->left;
        } else if (address - at->start < at->size) {
            return at;
        } else {
            at = at->right;
        }
    }
    return NULL;
}

/* The first interval that begins at `address` or later. */
static inline struct tp_interval *tp_interval_from(const struct tp_intervals *set, uint64_t address) {
    struct tp_interval *at = set->root, *best = NULL;
    while (at) {
        if (at->start >= address) {
            best = at;
            at = at->left;
        } else {
            at = at->right;
        }
    }
    return best;
}

/* The last interval that begins before `address`. */
static inline struct tp_interval *tp_interval_before(const struct tp_intervals *set, uint64_t address) {
    struct tp_interval *at = set->root, *best = NULL;
    while (at) {
        if (at->start < address) {
            best = at;
            at = at->right;
        } else {
            at = at->left;
        }
    }
    return best;
}

/* True when some interval has a byte in common with [start, start+size). */
static inline bool tp_intervals_touch(const struct tp_intervals *set, uint64_t start, uint64_t size) {
    const struct tp_interval *next = tp_interval_from(set, start);
    return tp_interval_at(set, start) || (next && next->start - start < size);
}

static inline struct tp_interval *tp_interval_merge(struct tp_interval *low, struct tp_interval *high) {
    struct tp_interval *root = NULL, **hook = &root;
    while (low && high) {
        if (low->priority >= high->priority) {
            *hook = low;
            hook = &low->right;
            low = low->right;
        } else {
            *hook = high;
            hook = &high->left;
            high = high->left;
        }
    }
    *hook = low ? low : high;
    return root;
}

/* False, with nothing changed, when it is empty, wraps around, or overlaps another. */
static inline bool tp_interval_add(struct tp_intervals *set, struct tp_interval *node) {
    if (!node->size || node->size - 1 > UINT64_MAX - node->start || tp_intervals_touch(set, node->start, node->size)) {
        return false;
    }
    set->seed = set->seed * 1664525u + 1013904223u + (uint32_t)((uintptr_t)node >> 6);
    node->priority = set->seed ^ set->seed >> 15;
    struct tp_interval **hook = &set->root;
    while (*hook && (*hook)->priority >= node->priority) {
        hook = node->start < (*hook)->start ? &(*hook)->left : &(*hook)->right;
    }
    struct tp_interval *rest = *hook, **low = &node->left, **high = &node->right;
    *hook = node;
    while (rest) {
        if (rest->start < node->start) {
            *low = rest;
            low = &rest->right;
            rest = rest->right;
        } else {
            *high = rest;
            high = &rest->left;
            rest = rest->left;
        }
    }
    *low = *high = NULL;
    set->count++;
    return true;
}

/* Takes out the interval that begins exactly at `start`; NULL if there is none. */
static inline struct tp_interval *tp_interval_remove(struct tp_intervals *set, uint64_t start) {
    struct tp_interval **hook = &set->root;
    while (*hook && (*hook)->start != start) {
        hook = start < (*hook)->start ? &(*hook)->left : &(*hook)->right;
    }
    struct tp_interval *node = *hook;
    if (node) {
        *hook = tp_interval_merge(node->left, node->right);
        set->count--;
    }
    return node;
}

#endif
