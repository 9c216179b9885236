#include "paths.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace confide::mpc {

namespace {

struct Machine {
    bool avx2 = false, vaes = false, avx512 = false;
};

Machine asked() {
    Machine found;
#ifdef CONFIDE_MPC_X86
    __builtin_cpu_init();
    // Older compilers know no names for AES and VAES: bits 25 of ecx of leaf 1 and 9 of ecx of leaf 7.
    const auto bit = [](unsigned leaf, unsigned place) {
        unsigned a = leaf, b = 0, c = 0, d = 0;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return (c >> place & 1) != 0;
    };
    found.avx2 = __builtin_cpu_supports("avx2") && bit(1, 25);
    found.vaes = found.avx2 && bit(7, 9);
    found.avx512 = found.vaes && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
    return found;
}

}  // namespace

bool runs_here(Path path) {
    static const Machine machine = asked();  // once: on virtual machines the instruction takes microseconds
    switch (path) {
        case Path::avx2: return machine.avx2;
        case Path::vaes: return machine.vaes;
        case Path::avx512: return machine.avx512;
        default: return true;
    }
}

Path best_path() {
    const char *named = std::getenv("CONFIDE_NATIVE_PATH");
    if (named && std::strcmp(named, "portable") == 0) return Path::portable;
    if (named && std::strcmp(named, "avx2") == 0) {
        if (!runs_here(Path::avx2)) throw std::invalid_argument("Expected an instruction set that this machine has");
        return Path::avx2;
    }
    if (named && *named && std::strcmp(named, "ifma") != 0)
        throw std::invalid_argument("Expected CONFIDE_NATIVE_PATH to be portable, avx2 or ifma");
    for (const Path path : {Path::avx512, Path::vaes, Path::avx2})
        if (runs_here(path)) return path;
    return Path::portable;
}

const BlockLoops &block_loops(Path path) {
#ifdef CONFIDE_MPC_X86
    if (path == Path::avx2) return avx2_blocks;
    if (path == Path::vaes) return vaes_blocks;
    if (path == Path::avx512) return avx512_blocks;
#endif
    (void)path;
    return portable_blocks;
}

const ProductLoops &product_loops(Path path) {
#ifdef CONFIDE_MPC_X86
    if (path == Path::avx512) return avx512_products;
    if (path != Path::portable) return avx2_products;
#endif
    (void)path;
    return portable_products;
}

}  // namespace confide::mpc
