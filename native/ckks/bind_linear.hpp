// What bind_linear.cpp adds to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace confide::ckks {

void bind_linear(nanobind::module_ &module);

}  // namespace confide::ckks
