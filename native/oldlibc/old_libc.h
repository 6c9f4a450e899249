/*
 * Put in front of every file of the client by the compiler's command line: what new C library headers do to old names.
 *
 * Since glibc 2.38 strtoul, sscanf and their kin are, for programs that ask for GNU extensions, other functions, which read
 * binary numbers like 0b1. Older C libraries lack them. Nothing of ours wants such numbers.
 */
#ifndef OLD_LIBC_H
#define OLD_LIBC_H

#include <features.h>
#undef __GLIBC_USE_C2X_STRTOL
#define __GLIBC_USE_C2X_STRTOL 0
#undef __GLIBC_USE_C23_STRTOL
#define __GLIBC_USE_C23_STRTOL 0

#endif
