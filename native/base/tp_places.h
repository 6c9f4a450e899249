/*
 * Addresses that a process keeps for one thing: fresh pages in them, at the next place that is free.
 *
 * The caller has a lock where several threads take some. Pages are given back with munmap. Nothing is reserved: what lies
 * in the range already is left alone.
 */
#ifndef TP_PLACES_H
#define TP_PLACES_H

#include <stdint.h>

struct tp_places {
    uint64_t begin, end, next;
};
/* Fresh pages there and nowhere else; NULL with errno. */
void *tp_pages_at(uint64_t address, uint64_t size);
/* Fresh pages in the range, the next ones at a multiple of `align` from these; NULL when no place was found, or without memory. */
void *tp_pages_take(struct tp_places *places, uint64_t size, uint64_t align);

#endif
