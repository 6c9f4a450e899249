/*
 * Lists that the linker makes: a family offers a list, the families above it register functions in it, and the one below
 * calls them all without knowing whose they are.
 *
 *     typedef void tpc_context_gone(struct tpc_context *context);   the list, by the type of its functions: in the header
 *     TP_LIST(tpc_context_gone);                                    of the family that offers it
 *     TP_REGISTER(tpc_context_gone, forget_ranges);                 in the file of whoever must hear of it
 *     TP_TELL(tpc_context_gone, context);                           where it happens
 *
 * Nothing runs for it at load, a list is read only, and it is empty where nobody is linked who registers. Its order is the
 * linker's: what one function does may not depend on what another did before.
 */
#ifndef TP_REGISTER_H
#define TP_REGISTER_H

#if defined(__clang__) && __has_attribute(retain)
#define TP_LISTED(list) __attribute__((used, retain, section(#list)))
#else
#define TP_LISTED(list) __attribute__((used, section(#list)))
#endif

#define TP_LIST(list)                                                                                                  \
    extern list *const __start_##list[] __attribute__((weak, visibility("hidden")));                                   \
    extern list *const __stop_##list[] __attribute__((weak, visibility("hidden")))
#define TP_REGISTER(list, function) static list *const registered_##function TP_LISTED(list) = function
#define TP_TELL(list, ...)                                                                                             \
    do {                                                                                                               \
        for (list *const *listed = __start_##list; listed < __stop_##list; listed++) {                                 \
            (*listed)(__VA_ARGS__);                                                                                    \
        }                                                                                                              \
    } while (0)

/* The same of functions that answer, until one answers something else than 0; `answer` is 0 before. */
#define TP_ASK(list, answer, ...)                                                                                      \
    do {                                                                                                               \
        for (list *const *listed = __start_##list; !(answer) && listed < __stop_##list; listed++) {                    \
            (answer) = (*listed)(__VA_ARGS__);                                                                         \
        }                                                                                                              \
    } while (0)

#endif
