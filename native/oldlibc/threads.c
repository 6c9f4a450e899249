/*
 * libpthread.so.0 as it was up to glibc 2.33, for the linker only: names and versions, no code that anybody runs.
 *
 * Since 2.34 these functions are in libc.so.6 under a new version, and a file linked with it cannot be loaded by an older C
 * library. Linked with this, it asks for the old versions, which new C libraries have as well. What is not listed here and is
 * new comes from the C library of the building machine; tests/test_binaries.py finds it.
 */
#define OLD(name)                                                                                                      \
    void name(void);                                                                                                   \
    void name(void) {}

OLD(pthread_attr_setstacksize)
OLD(pthread_create)
OLD(pthread_detach)
OLD(pthread_getspecific)
OLD(pthread_join)
OLD(pthread_key_create)
OLD(pthread_mutex_trylock)
OLD(pthread_mutexattr_destroy)
OLD(pthread_mutexattr_init)
OLD(pthread_mutexattr_setpshared)
OLD(pthread_mutexattr_setrobust)
OLD(pthread_once)
OLD(pthread_setname_np)
OLD(pthread_setspecific)
OLD(pthread_sigmask)
