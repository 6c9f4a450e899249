/*
 * Fresh pages in a range of addresses that a process keeps for one thing.
 *
 * Next-fit: an address is taken again only when all behind it were, so what still refers to memory that is gone meets nothing new soon.
 * What lies in the way is stepped over, further each time.
 */
#include "tp_places.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define TRIES 1024

void *tp_pages_at(uint64_t address, uint64_t size) {
    void *wanted = (void *)(uintptr_t)address;
    void *got = mmap(wanted, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != wanted && got != MAP_FAILED) {
        munmap(got, size);
        errno = EEXIST; /* a kernel before 4.17 takes the address as a hint */
    }
    return got == wanted ? got : NULL;
}

void *tp_pages_take(struct tp_places *places, uint64_t size, uint64_t align) {
    uint64_t step = size;
    for (int i = 0; i < TRIES && size <= places->end - places->begin; i++) {
        if (places->next < places->begin || places->next > places->end || size > places->end - places->next) {
            places->next = places->begin;
            step = size;
        }
        const uint64_t wanted = places->next;
        places->next += (step + align - 1) & ~(align - 1);
        void *got = tp_pages_at(wanted, size);
        if (got) {
            return got;
        }
        if (errno != EEXIST) {
            break;
        }
        step *= 2; /* it may be much larger than this */
    }
    return NULL;
}
