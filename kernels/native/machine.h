// What lets one build use the vectors of the machine that it runs on.
#pragma once

// Compiles a function for several x86 levels; the loader picks one. Elsewhere it is compiled once, as it stands.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__GLIBC__)
#define LATENTSEG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LATENTSEG_CLONES
#endif

// For what such functions share: it is compiled as each of them is.
#if defined(__GNUC__)
#define LATENTSEG_INLINE inline __attribute__((always_inline))
#else
#define LATENTSEG_INLINE inline
#endif

// Whether functions can be written in intrinsics, for a machine that is asked about at run time. Clang: the version
// that the fuzzer is built with (docs/fuzzing.md), and later ones.
#if defined(__x86_64__) && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 19)
#include <immintrin.h>
#define LATENTSEG_X86_VECTORS
#endif
