// What `module.cpp` calls to offer the innermost loops to Python.
#pragma once

#include <nanobind/nanobind.h>

namespace confide::ckks {

void bind_kernels(nanobind::module_ &module);

}  // namespace confide::ckks
