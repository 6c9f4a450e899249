/* libdl.so.2 as it was up to glibc 2.33, for the linker only: see threads.c. */
#define OLD(name)                                                                                                      \
    void name(void);                                                                                                   \
    void name(void) {}

OLD(dladdr)
OLD(dlclose)
OLD(dlerror)
OLD(dlopen)
OLD(dlsym)
