// The checks of the program that proves the emulated device: each runs kernels and returns what is wrong, else "".
#pragma once

#include <map>
#include <string>

// Kernels with a bug planted, and with `broken` false the same kernels without it.
const std::map<std::string, std::string (*)(bool broken)>& bugs();
// What single instructions do.
const std::map<std::string, std::string (*)()>& instructions();

std::string differs(const char* what, int index, double actual, double expected, double tolerance = 0);
