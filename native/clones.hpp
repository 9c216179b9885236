// One body, compiled once per instruction set; the loader picks at start (glibc's ifunc). Sanitized builds go without:
// their run time is not ready when the loader asks.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(CONFIDE_SANITIZE)
#define CONFIDE_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define CONFIDE_CLONES
#endif
