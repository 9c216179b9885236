// What `module.cpp` calls to offer products, streams and comparison keys to Python.
#pragma once

#include <nanobind/nanobind.h>

namespace confide::mpc {

void bind(nanobind::module_ &module);

}  // namespace confide::mpc
