/*
 * Between what programs load (libcuda, libnvidia-ml) and what does the work (libteleport): one table of pointers for each API.
 *
 * A process may hold several copies of libcuda: one preloaded, one opened by its path from another folder, one that a wheel
 * brings. Each copy is nothing but a jump for each name, so that all of them share the handles, contexts and connection that
 * are in the one libteleport of the process. They find it at the first call, not at load (load.c): a dependency that the
 * dynamic loader cannot find would end every program of a shell that preloads libcuda, `ls` among them.
 *
 * The jump costs one load, one test and one indirect branch; libteleport's own parts call each other directly.
 */
#ifndef TPL_H
#define TPL_H

#include "tpg_table.h"
#include <tp_base.h>

typedef const struct tpg_address *tpl_addresses(const char *name, int flag, int *count);

/* What a library of exports is; generated behind its exports. */
struct tpl_api {
    const char *name, *library, *layout;
    int missing, foreign; /* what its functions answer without libteleport, and with one of another build */
    tpl_addresses *addresses;
};
extern const struct tpl_api tpl_api;

/* libteleport's side (table.c): the table of the API `name`; NULL when it has none that is laid out so. `addresses` are the
 * exports of the library that asks; the first to ask gives those that cuGetProcAddress hands out. */
#define TPL_ENTRANCE "tp_client_table"
typedef const void *tpl_entrance(const char *name, const char *layout, tpl_addresses *addresses);
TP_EXPORT tpl_entrance tp_client_table;
/* procaddress.c asks here; NULL for a name that the driver has not. */
tpl_addresses tpl_address_rows;

/* The side of the exports (load.c). NULL until the first call, and for good when there is no libteleport. */
extern const void *_Atomic tpl_table __attribute__((visibility("hidden")));
const void *tpl_load(void);
int tpl_absent(void);
const char *tpl_absent_text(void);

static inline const void *tpl_loaded(void) { return atomic_load_explicit(&tpl_table, memory_order_acquire); }
/* Around the first call of an exported function: apart from it, so that the way of all others saves no registers. */
#define TPL_FIRST __attribute__((noinline, cold)) static

#endif
