// What `module.cpp` calls to offer sums of ciphertexts times integers to Python.
#pragma once

#include <nanobind/nanobind.h>

namespace confide::ckks {

void bind_sums(nanobind::module_ &module);

}  // namespace confide::ckks
